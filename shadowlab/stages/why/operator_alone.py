"""The culprit operator on the operands it had: in its dtype, and in float64."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from diagnostics import Verdict
from diagnostics.incidents import load_evidence
from shadowlab.stages.why.counterfactuals import FINITE, NOT_RUN, SAME, Outcome


def operator_outcomes(incident: Path, verdict: Verdict, device: torch.device) -> Iterator[Outcome]:
    """Two outcomes; `not run` where the operator was not kept or has no float64 form."""
    file = incident / "operator.pt"
    if not file.is_file():
        why = "a leaf brought the value in" if verdict.op is None else "too large, not torch's own, or removed since"
        yield Outcome("operator", "the operator alone", NOT_RUN, f"no operator was kept: {why}")
        return
    try:
        call = load_evidence(file, device)
    except ValueError as error:
        yield Outcome("operator", "the operator alone", NOT_RUN, str(error))
        return
    name = call["operator"]
    operator: Any = torch.ops
    for part in name.split("."):
        operator = getattr(operator, part)
    short = name.removeprefix("aten.").removesuffix(".default")
    floats = [t.dtype for t in tree_flatten([call["args"], call["kwargs"]])[0] if isinstance(t, Tensor)]
    dtype = next((d for d in floats if d.is_floating_point), torch.float32)
    text = verdict.witness.get("dtype") or str(dtype).removeprefix("torch.")  # of the result, which a cast changes
    yield _outcome(
        f"{short} alone in {text}",
        lambda: _num_bad(operator, call, None),
        "its operands are enough: python repro.py shows it with torch alone",
        "not on these operands alone: the kernel, its device, or memory that was not yet written",
    )
    if text == "float64":
        return
    yield _outcome(
        f"{short} alone in float64",
        lambda: _num_bad(operator, call, torch.float64),
        "an operand was rounded to 0 before this operator: float64 comes too late here"
        if verdict.cause == "underflow"
        else "its operands are at fault, not its dtype: look at what made them",
        f"{text} cannot hold what these operands give, or its kernel is wrong",
    )


def _outcome(name: str, run: Callable[[], int], same: str, finite: str) -> Outcome:
    try:
        count = run()
    except (RuntimeError, NotImplementedError) as error:
        return Outcome("operator", name, NOT_RUN, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    numbers = {"num_bad": count}
    if count:
        return Outcome("operator", name, SAME, same, f"{count} values are not finite", numbers)
    return Outcome("operator", name, FINITE, finite, "", numbers)


def _num_bad(operator: Any, call: dict[str, Any], dtype: torch.dtype | None) -> int:
    """Values that are not finite in the results, or in arguments written in place that were finite before."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype, copy=True) if dtype is not None and value.is_floating_point() else value.clone()
        return dtype if dtype is not None and isinstance(value, torch.dtype) and value.is_floating_point else value

    args, kwargs = tree_map(copied, (call["args"], call["kwargs"]))
    given = [t for t in tree_flatten([args, kwargs])[0] if isinstance(t, Tensor)]
    before = [_count(t) for t in given]
    results = [t for t in tree_flatten(operator(*args, **kwargs))[0] if isinstance(t, Tensor)]
    written = [_count(t) for t, old in zip(given, before, strict=True) if _count(t) > old]
    fresh = [_count(t) for t in results if not any(t is one for one in given)]
    return sum(written) + sum(fresh)


def _count(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() or tensor.is_complex() else 0
