"""An operator's operands in words: what each is for, what it is called, and how a denominator became zero."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diagnostics.tracing.judgement import Judgement
from diagnostics.tracing.zero import Rounded

_QUOTIENT = {"self": "numerator", "other": "denominator"}
_ROLES: dict[str, dict[str, str]] = {
    "addcdiv": {"tensor1": "numerator", "tensor2": "denominator"},
    "div": _QUOTIENT,
    "true_divide": _QUOTIENT,
    "remainder": _QUOTIENT,
    "fmod": _QUOTIENT,
    "reciprocal": {"self": "denominator"},
    "rsqrt": {"self": "denominator"},
    "pow": {"self": "base", "exponent": "exponent"},
}


def operand_words(judgement: Judgement, op: str, storage_names: Mapping[int, str]) -> dict[str, Any]:
    """Entries of a verdict's witness, as `Verdict.witness` describes them; only those that are known.

    Args:
        storage_names: key of a storage -> what a person calls the tensor.
    """
    expression = judgement.expression
    names = {} if expression is None else dict(expression.names)
    tensors = {name: storage_names[key] for name, key in judgement.storages.items() if key in storage_names}
    roles = _ROLES.get(op.removeprefix("_foreach_").rstrip("_"), {})
    roles = {name: role for name, role in roles.items() if name in judgement.operands}
    words: dict[str, Any] = {}
    if names or tensors:
        words["names"] = {name: text for name, text in (names | tensors).items() if name in judgement.operands}
    if roles:
        words["roles"] = roles
    if expression is not None and (names or roles):
        words["expression"], words["expression_at"] = expression.text, expression.source
    if judgement.rounded:
        words["zero"] = [_entry(one, storage_names) for one in judgement.rounded]
        name = judgement.denominator or ""
        called = words.get("names", {}).get(name) or f"the {roles.get(name, 'operand')}"
        words["why_zero"] = _why_zero(called, judgement.rounded, storage_names)
    return words


def added_numbers(judgement: Judgement) -> list[float]:
    """Numbers that were added to what became zero, or that a fused operator adds inside: an eps."""
    found = [
        number
        for one in judgement.rounded
        if one.op == "add"
        for name, number in one.operands.items()
        if name in ("other", "scalar", "scalars")
    ]
    eps = judgement.operands.get("eps")
    return [*found, eps] if isinstance(eps, float) else found


def _entry(one: Rounded, names: Mapping[int, str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"op": one.op, "in_float64": one.exact, "dtype": _name(one.dtype), "operands": one.operands}
    if one.storage is not None and one.storage in names:
        entry["tensor"] = names[one.storage]
    return entry


def _why_zero(called: str, steps: Sequence[Rounded], names: Mapping[int, str]) -> str:
    first, dtype = steps[0], steps[0].dtype
    info = torch.finfo(dtype)
    what = f"the result of {first.op}"
    if first.storage is not None:
        what = names.get(first.storage, what)
    text = (
        f"{what} is {first.exact:.3g} in float64 and rounds to 0 in {_name(dtype)}, whose least number is "
        f"{info.smallest_normal * info.eps:.3g}"
    )
    added = [
        number
        for one in steps
        if one.op == "add"
        for name, number in one.operands.items()
        if name in ("other", "scalar", "scalars") and number != 0 and float(torch.tensor(number, dtype=one.dtype)) == 0
    ]
    lost = "".join(f"; the {number:g} that is added to it rounds to 0 as well" for number in added)
    return f"{text}{lost}: {called} is 0"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
