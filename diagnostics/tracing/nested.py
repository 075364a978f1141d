"""What lies in an operator's arguments and results: tuples, lists and dicts of leaves.

torch's pytree knows every container there is, and takes a tenth of an explanation's time for it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor
from torch.nn import Buffer, Parameter

from diagnostics.tensors import strided


def leaves(tree: Any) -> list[Any]:
    """All that is neither tuple, list nor dict, in order; of a dict the values."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return [leaf for part in tree for leaf in leaves(part)]
    if kind is dict:
        return [leaf for part in tree.values() for leaf in leaves(part)]
    return [tree]


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same containers with `function(leaf)` in the place of each leaf."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([mapped(function, part) for part in tree])
    if kind is dict:
        return {key: mapped(function, part) for key, part in tree.items()}
    return function(tree)


def tensor_leaves(tree: Any) -> list[Tensor]:
    """The tensors among the leaves, any shape and layout."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def strided_leaves(tree: Any) -> list[Tensor]:
    """The strided tensors that hold the values of the tensors among the leaves; see `diagnostics.tensors.strided`."""
    found: list[Tensor] = []
    _add_strided(tree, found)
    return found


def _add_strided(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        values = strided(tree)
        if values is not None:
            found.append(values)
        return
    kind = type(tree)
    if kind is tuple or kind is list:
        for part in tree:
            _add_strided(part, found)
    elif kind is dict:
        for part in tree.values():
            _add_strided(part, found)


@cache
def own_attributes(cls: type) -> frozenset[str]:
    """What a subclass of Tensor has beyond torch's own."""
    skipped = (Tensor, Parameter, Buffer, object)
    return frozenset(name for base in cls.__mro__ if base not in skipped for name in vars(base))
