"""The culprit operator on the operands it had: in its dtype, and in float64."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from diagnostics import Verdict
from shadowlab.plain_text import counted
from shadowlab.stages.why.counterfactuals import FINITE, NOT_RUN, SAME, Outcome
from shadowlab.stages.why.kept_operator import KeptCall, read_call


def operator_outcomes(incident: Path, verdict: Verdict, device: torch.device) -> Iterator[Outcome]:
    """Two outcomes; `not run` where the operator was not kept, may not be run from a file, or has no float64 form."""
    file = incident / "operator.pt"
    if not file.is_file():
        why = "a leaf brought the value in" if verdict.op is None else "too large, not torch's own, or removed since"
        yield Outcome("operator", "the operator alone", NOT_RUN, f"no operator was kept: {why}")
        return
    try:
        call = read_call(file, device)
    except ValueError as error:
        yield Outcome("operator", "the operator alone", NOT_RUN, str(error))
        return
    short = call.name.removeprefix("aten.").removesuffix(".default")
    floats = [t.dtype for t in tree_flatten([call.args, call.kwargs])[0] if isinstance(t, Tensor)]
    dtype = next((d for d in floats if d.is_floating_point), torch.float32)
    text = verdict.witness.get("dtype") or str(dtype).removeprefix("torch.")  # of the result, which a cast changes
    yield _outcome(
        f"{short} alone in {text}",
        lambda: _num_bad(call, None),
        "its operands are enough: python repro.py shows it with torch alone",
        "not on these operands alone: the kernel, its device, or memory that was not yet written",
    )
    if text == "float64":
        return
    yield _outcome(
        f"{short} alone in float64",
        lambda: _num_bad(call, torch.float64),
        "an operand was rounded to 0 before this operator: float64 comes too late here"
        if verdict.cause == "underflow"
        else "its operands are at fault, not its dtype: look at what made them",
        f"{text} cannot hold what these operands give, or its kernel is wrong",
    )


def _outcome(name: str, run: Callable[[], int], same: str, finite: str) -> Outcome:
    try:
        count = run()
    except Exception as error:  # whatever the arguments of a file make it raise
        said = next(iter(str(error).splitlines()), "")
        return Outcome("operator", name, NOT_RUN, f"{type(error).__name__}: {said}")
    numbers = {"num_bad": count}
    if count:
        return Outcome("operator", name, SAME, same, f"not finite: {counted(count, 'value')}", numbers)
    return Outcome("operator", name, FINITE, finite, "", numbers)


def _num_bad(call: KeptCall, dtype: torch.dtype | None) -> int:
    """Values that are not finite in the results, or in arguments written in place that were finite before.

    The generators (dropout) are afterwards as before.
    """

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype, copy=True) if dtype is not None and value.is_floating_point() else value.clone()
        return dtype if dtype is not None and isinstance(value, torch.dtype) and value.is_floating_point else value

    args, kwargs = tree_map(copied, (call.args, call.kwargs))
    given = [t for t in tree_flatten([args, kwargs])[0] if isinstance(t, Tensor)]
    before = [_count(t) for t in given]
    with torch.no_grad(), torch.random.fork_rng([t.device for t in given[:1] if t.is_cuda]):
        outputs = call.operator(*args, **kwargs)
    results = [t for t in tree_flatten(outputs)[0] if isinstance(t, Tensor)]
    written = [_count(t) for t, old in zip(given, before, strict=True) if _count(t) > old]
    fresh = [_count(t) for t in results if not any(t is one for one in given)]
    return sum(written) + sum(fresh)


def _count(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() or tensor.is_complex() else 0
