"""A loss that is differentiated, taken apart into its terms: those with a graph, and what is constant."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_DEPTH = 64


def constant_in(root: Tensor, variables: Mapping[str, Any]) -> float | None:
    """What a loss () has besides the variables that have a graph, as a sum of them with numbers as factors.

    None where it has no such part, or is no sum of variables. Reads on the host, where there is one.
    """
    tensors = [v for v in variables.values() if isinstance(v, Tensor) and v.numel() == 1 and v.grad_fn is not None]
    values = {tensor.grad_fn: tensor for tensor in tensors}
    if root.grad_fn is None or not _has_constant(root.grad_fn, _DEPTH):
        return None
    with _disable_current_modes():  # a mode that follows operators would be given numbers in place of tensors
        terms = _terms(root.grad_fn, values, _DEPTH)
        if terms is None:
            return None
        return float(root.detach()) - sum(weight * float(values[node].detach()) for weight, node in terms)


def _kind(node: Any) -> str:
    return re.sub(r"Backward\d+$", "", type(node).__name__)


def _has_constant(node: Any, depth: int) -> bool:
    children = [child for child, _ in node.next_functions]
    if depth == 0 or _kind(node) not in ("Add", "Sub", "Rsub", "Mul", "Div", "Neg"):
        return False
    if _kind(node) == "Rsub" or (_kind(node) in ("Add", "Sub") and None in children):
        return True
    return any(_has_constant(child, depth - 1) for child in children if child is not None)


def _terms(node: Any, values: Mapping[Any, Tensor], depth: int) -> list[tuple[float, Any]] | None:
    """(factor, node of a variable) pairs; None where a term is no variable."""
    known = [(1.0, node)] if node in values else None
    factors = _factors(node) if depth else None
    if factors is None:
        return known
    found: list[tuple[float, Any]] = []
    for factor, child in factors:
        below = _terms(child, values, depth - 1)
        if below is None:
            return known
        found += [(factor * weight, one) for weight, one in below]
    return found


def _factors(node: Any) -> list[tuple[float, Any]] | None:
    """Of a linear operator: what its inputs with a graph are multiplied by; None for any other operator."""
    kind, children = _kind(node), [child for child, _ in node.next_functions]
    if kind in ("Add", "Sub"):
        alpha = _number(getattr(node, "_saved_alpha", 1)) or 1.0
        signs = (1.0, alpha if kind == "Add" else -alpha)
        return [(sign, child) for sign, child in zip(signs, children, strict=False) if child is not None]
    if kind == "Rsub":
        return [(-(_number(getattr(node, "_saved_alpha", 1)) or 1.0), children[0])]
    if kind == "Neg":
        return [(-1.0, children[0])]
    if kind == "Mul" and sum(child is not None for child in children) == 1:
        place = next(i for i, child in enumerate(children) if child is not None)
        number = _number(getattr(node, ("_saved_other", "_saved_self")[place], None))
        return None if number is None else [(number, children[place])]
    if kind == "Div" and children[0] is not None and all(child is None for child in children[1:]):
        number = _number(getattr(node, "_saved_other", None))
        return [(1 / number, children[0])] if number else None
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) else None
