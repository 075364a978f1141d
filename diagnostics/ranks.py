"""Several processes that train together: which one this is, and what they must decide as one."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from diagnostics.verdict import Verdict


def num_ranks() -> int:
    """Processes of the default group; 1 where there is none."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def rank() -> int:
    """0-based number of this process; 0 where there is only one."""
    return torch.distributed.get_rank() if num_ranks() > 1 else 0


def worst(magnitudes: Tensor) -> list[float]:
    """Read numbers on the host: each the largest of all ranks, inf where any of several ranks has NaN or Inf.

    Args:
        magnitudes: (N,) floating; a collective of all ranks where there are several.
    """
    if num_ranks() > 1:
        magnitudes = torch.where(torch.isfinite(magnitudes), magnitudes, torch.inf)
        torch.distributed.all_reduce(magnitudes, op=torch.distributed.ReduceOp.MAX)
    return cast(list[float], magnitudes.tolist())


def placed(number: Tensor) -> Tensor:
    """(ranks,) for `worst`, which then gives the numbers of all ranks: this rank's in its place, the least number of
    the dtype in the others."""
    found = number.new_full((num_ranks(),), torch.finfo(number.dtype).min)
    found[rank()] = number
    return found


def on_any(flag: bool) -> bool:
    """Whether it holds on any rank; a collective of all ranks where there are several."""
    if num_ranks() == 1:
        return flag
    flags: list[Any] = [None] * num_ranks()
    torch.distributed.all_gather_object(flags, flag)
    return any(flags)


def agreed(verdict: Verdict | None) -> Verdict | None:
    """One verdict for all ranks: that of the first rank where a value was born rather than received.

    A collective of all ranks where there are several.
    """
    if num_ranks() == 1:
        return verdict
    found: list[Any] = [None] * num_ranks()
    mine = None if verdict is None else replace(verdict, rank=rank()).to_json()
    torch.distributed.all_gather_object(found, mine)
    verdicts = [Verdict.from_json(one) for one in found if one is not None]
    first = min(verdicts, key=lambda v: (v.phase == "reduce", v.rank), default=None)
    if first is not None and first.cause == "other_rank" and len(verdicts) == num_ranks() and "inf" in first.value:
        fix = "the sum over ranks overflows: divide before reducing, or reduce in a wider dtype"
        return replace(first, exception="overflow", cause="overflow", fix=fix)  # nobody sent a bad value
    return first
