"""What stands in modules as a parameter or a switch, and is none to torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from diagnostics.modules import walk

_MOST_NODES = 64


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


def results_in(root: nn.Module, own: Mapping[int, Any]) -> Iterator[str]:
    """Names of attributes that were computed from leaves which are none of the models' parameters.

    Args:
        own: by id; what was computed from these is an activation that a module keeps.
    """
    for prefix, module in walk(root):
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                leaves = _leaves_below(value.grad_fn)
                if leaves and not any(id(leaf) in own for leaf in leaves):
                    yield f"{prefix}.{key}".lstrip(".")


def frozen_by_attribute(root: nn.Module) -> Iterator[str]:
    """Names of modules with an attribute `requires_grad` of False that hold parameters which train."""
    for name, module in walk(root):
        if vars(module).get("requires_grad") is False and any(p.requires_grad for p in module.parameters()):
            yield name or type(module).__name__


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
