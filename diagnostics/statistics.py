"""Statistics of one tensor, computed where the tensor lives and read later.

A step leaves one vector of sums a tensor on its device; division, merging and the one transfer to the host come
after the step, so that nothing in it waits for the device.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Magnitudes whose squares neither overflow nor vanish when summed; others are scaled into this range first.
_SAFE_RANGE = {torch.float32: (2.0**-40, 2.0**40), torch.float64: (2.0**-400, 2.0**400)}
_ROW = 4096  # longest run that a norm is summed over in one go: float32 lanes lose 1e-4 over ten million elements


class Moments(NamedTuple):
    """Sums of one tensor: its element count and, on its device, six scalars of float32 or float64:
    smallest, largest, scale, sum, norm and count, the last three of the tensor times `scale`.

    `scale` is 1 in the ordinary case, a factor against overflow and underflow of squares for extreme magnitudes, and
    0 where an element is not finite. `count` is of non-zeros after scaling, so with scale 0 (0 * inf is nan) it is
    the count of the non-finite: one pass gives the zeros of a healthy tensor and the bad elements of a sick one.
    """

    num_elements: int
    sums: tuple[Tensor, ...] | None


def dense(tensor: Tensor) -> Tensor | None:
    """The real, strided values that this process holds of a tensor, without its graph; None where it holds none.

    Sparse: the values that are stored. Complex: real and imaginary parts, (..., 2). DTensor: the local shard.
    Meta tensors hold nothing.
    """
    x = tensor.detach()
    if type(x) is not Tensor and hasattr(x, "to_local"):
        x = x.to_local()
    if x.is_meta:
        return None
    if x.layout is torch.sparse_coo:
        x = x.coalesce().values()
    elif x.layout is not torch.strided:
        x = x.values()
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def moments(tensor: Tensor) -> Moments:
    """Sums of a floating or complex tensor of any shape, empty included. No host synchronisation, input unchanged.

    Half types are summed in float32, float32 in float32, float64 in float64. The transient cost is one copy of the
    tensor in that type.
    """
    x = dense(tensor)
    if x is None or x.numel() == 0:
        return Moments(0, None)
    is_wide = x.dtype in _SAFE_RANGE
    y = x if is_wide else x.float()
    smallest, largest = torch.aminmax(y)  # on the CPU ten times faster than an infinity norm; passes nan on
    magnitude = torch.maximum(smallest.neg(), largest)
    # 1 inside the safe range; 0 for inf and nan; 1 for an all-zero tensor, whose quotient is inf
    scale = magnitude.clamp(*_SAFE_RANGE[y.dtype]).div_(magnitude).nan_to_num_(nan=0.0, posinf=1.0)
    y = y * scale if is_wide else y.mul_(scale)
    total, norm = y.sum(), _norm(y)
    num_nonzero = y.ne_(0).sum()  # y is ours; in place and summed as floats, 3 times faster than count_nonzero
    return Moments(y.numel(), (smallest, largest, scale, total, norm, num_nonzero))


def _norm(fresh: Tensor) -> Tensor:
    """L2 norm of the result of an elementwise operation, by way of the norms of rows where it is long."""
    if fresh.numel() <= 16 * _ROW:
        return torch.linalg.vector_norm(fresh)
    flat = fresh.as_strided((fresh.numel(),), (1,))  # such results are dense, and any order of elements will do
    whole = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1)
    return torch.linalg.vector_norm(torch.cat([rows, flat[whole:]]))


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics of one tensor, or of several as if concatenated.

    norm: L2. std: the population's; its error is about 1e-3 of |mean| for float32 and half types (it comes from
    norm and mean, so it says nothing of a spread a thousand times smaller than the mean), and it is exactly 0 for
    constant tensors. max_abs: largest magnitude. fraction_zero: of exact zeros; in tensors that reach beyond 1e12
    what is 1e-45 of the largest counts as zero. num_nonfinite: NaN and Inf, exact up to 2**24.

    Where num_nonfinite > 0, norm and max_abs are inf or nan, mean is inf, -inf or nan, std and fraction_zero are nan.
    An empty tensor gives zeros. Extreme finite values overflow nothing: norm is inf only beyond float64's range.
    """

    norm: float
    mean: float
    std: float
    max_abs: float
    fraction_zero: float
    num_nonfinite: int

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorStatistics":
        """Statistics of one tensor, read at once: a host synchronisation."""
        return summarize([[moments(tensor)]])[0]

    def to_dict(self) -> dict[str, float | int]:
        return dict(vars(self))


def summarize(groups: Sequence[Sequence[Moments]]) -> list[TensorStatistics]:
    """Statistics of each group, as if its tensors were concatenated. One transfer for each device and dtype."""
    flat = [part for group in groups for part in group]
    rows = iter(zip((part.num_elements for part in flat), _to_host([part.sums for part in flat]), strict=True))
    return [_merged([(number, sums) for number, sums in (next(rows) for _ in group) if sums]) for group in groups]


def _to_host(sums: list[tuple[Tensor, ...] | None]) -> list[list[float]]:
    """Each tensor's six numbers; an empty list for None."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, scalars in enumerate(sums):
        if scalars is not None:
            kinds.setdefault((scalars[0].device, scalars[0].dtype), []).append(index)
    values: list[list[float]] = [[] for _ in sums]
    for indices in kinds.values():
        numbers = torch.stack([scalar for index in indices for scalar in sums[index] or ()]).view(-1, 6).tolist()
        for index, row in zip(indices, numbers, strict=True):
            values[index] = row
    return values


def _merged(rows: list[tuple[int, list[float]]]) -> TensorStatistics:
    total = sum(number for number, _ in rows)
    if total == 0:
        return TensorStatistics(0.0, 0.0, 0.0, 0.0, 0.0, 0)
    smallest = _extreme(min, (sums[0] for _, sums in rows))
    largest = _extreme(max, (sums[1] for _, sums in rows))
    max_abs = _extreme(max, (abs(smallest), abs(largest)))
    if not math.isfinite(max_abs):
        num_bad = sum(int(sums[5]) for _, sums in rows if sums[2] == 0)
        mean = smallest + largest  # inf - inf and nan come out as they would in the sum
        return TensorStatistics(max_abs, mean, math.nan, max_abs, math.nan, num_bad)
    mean = sum(sums[3] / number / sums[2] * (number / total) for number, sums in rows)
    norm = math.hypot(*(sums[4] / sums[2] for _, sums in rows))
    root_mean_square = math.hypot(*(sums[4] / math.sqrt(total) / sums[2] for _, sums in rows))
    # sqrt((r - m)(r + m)), in halves against overflow; rounding can make r < |m|. No spread exceeds half the range.
    apart, together = root_mean_square / 2 - abs(mean) / 2, root_mean_square / 2 + abs(mean) / 2
    std = 2 * math.sqrt(max(apart, 0.0)) * math.sqrt(together)
    std = min(std, largest / 2 - smallest / 2)
    num_zero = total - sum(sums[5] for _, sums in rows)
    return TensorStatistics(norm, mean, std, max_abs, max(num_zero, 0.0) / total, 0)


def _extreme(choose: Callable[[list[float]], float], values: Iterable[float]) -> float:
    """The least or greatest value, but nan where there is one: Python's own comparison forgets it."""
    listed = list(values)
    return math.nan if any(math.isnan(value) for value in listed) else choose(listed)
