"""What stands in modules as a parameter or a switch, and is none to torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from diagnostics.modules import walk

_MOST_NODES = 64
_FREEZES = re.compile(r"required?s?_?gra[a-z]*_?$")


def hidden_in(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Dotted names and tensors of any shape that train and stand in plain containers of its modules, or are plain
    tensors with requires_grad."""
    own = {id(p) for _, module in walk(root) for p in module._parameters.values() if p is not None}
    for prefix, module in walk(root):
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_leaf and value.requires_grad and id(value) not in own:
                yield f"{prefix}.{key}".lstrip("."), value
            if key.startswith("_") or not isinstance(value, (list, tuple, dict)):
                continue
            for place, one in value.items() if isinstance(value, dict) else enumerate(value):
                name = f"{prefix}.{key}.{place}".lstrip(".")
                if isinstance(one, nn.Parameter) and id(one) not in own:
                    yield name, one
                elif isinstance(one, nn.Module):
                    yield from ((f"{name}.{n}", p) for n, p in one.named_parameters() if id(p) not in own)


def results_in(root: nn.Module, own: Mapping[int, Any]) -> Iterator[tuple[str, Tensor]]:
    """Names and values, of any shape, of attributes computed from leaves that are no parameters of the models.

    Args:
        own: by id; what was computed from these is an activation that a module keeps.
    """
    for prefix, module in walk(root):
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                leaves = _leaves_below(value.grad_fn)
                if leaves and not any(id(leaf) in own for leaf in leaves):
                    yield f"{prefix}.{key}".lstrip("."), value


def frozen_by_attribute(root: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of modules and parameters that train, and the attribute that was set to False to freeze them:
    `requires_grad` of a module, or a misspelt one."""
    for name, module in walk(root):
        attribute = next((key for key, value in vars(module).items() if value is False and _FREEZES.match(key)), None)
        if attribute is not None and any(p.requires_grad for p in module.parameters()):
            yield name or type(module).__name__, attribute
        for key, parameter in module._parameters.items():
            own = vars(parameter) if parameter is not None and parameter.requires_grad else {}
            attribute = next((one for one, value in own.items() if value is False and _FREEZES.match(one)), None)
            if attribute is not None:
                yield f"{name}.{key}".lstrip("."), attribute


def _leaves_below(node: Any) -> list[Tensor]:
    """Leaves that a result was computed from; none where its graph is too large to be a conversion."""
    seen, ahead, found = set(), [node], []
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        if len(seen) > _MOST_NODES:
            return []
        leaf = getattr(node, "variable", None)
        found += [] if leaf is None else [leaf]
        ahead += [child for child, _ in node.next_functions if child is not None]
    return found
