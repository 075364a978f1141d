"""Statistics of one tensor, prepared where the tensor lives and computed later.

A step leaves a sample of each tensor, and of large ones the extremes, on its device, in tables as the arithmetic
wants them: nothing is gathered later, and thousands of tensors leave few Python objects behind, whose number is what
wakes the garbage collector. Arithmetic, merging and the transfer to the host come after the step, so that nothing in
it waits for the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from diagnostics.tensors import dense

# Magnitudes whose squares neither overflow nor vanish when summed; others are scaled into this range first.
_SAFE_RANGE = {torch.float32: (2.0**-40, 2.0**40), torch.float64: (2.0**-400, 2.0**400)}
MAX_EXACT_ELEMENTS = 16_384
_NUM_RUNS, _RUN = 512, 8  # what is read of larger tensors: runs of neighbours, since a cache line costs as one element
_BATCH = 2**18  # elements of a table: 1 MiB, small enough for a processor's cache


@dataclass(slots=True)
class _Table:
    """Samples of one size, type and device, (rows, size), of which the first `len(numbers)` are in use.

    numbers: of the samples, in the order in which they were taken. num_elements: of the tensors they come from.
    smallest, largest: (rows,) of whole tensors, nan where there is one; None where the samples are whole tensors.
    """

    values: Tensor
    smallest: Tensor | None
    largest: Tensor | None
    numbers: list[int] = field(default_factory=list)
    num_elements: list[int] = field(default_factory=list)

    @classmethod
    def like(cls, x: Tensor, size: int) -> "_Table":
        rows = max(1, _BATCH // size)
        with torch.inference_mode(False):  # else it could be written in that mode alone
            values = x.new_empty(rows, size)
            if size == x.numel():
                return cls(values, None, None)
            ends = torch.empty(2, rows, dtype=x.dtype if x.itemsize > 1 else torch.float32, device=x.device)
            return cls(values, ends[0], ends[1])


class Samples:
    """Copies of what the statistics of a step's tensors need, until `summarize` has used them up."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._open: dict[tuple[bool, int, torch.dtype, torch.device], _Table] = {}
        self._tables: list[_Table] = []
        self._num_samples = 0

    def add(self, tensor: Tensor) -> int | None:
        """Sample a floating or complex tensor of any shape; the sample's number, or None where it holds nothing.

        No host synchronisation, input unchanged.
        """
        x = dense(tensor)
        num_elements = 0 if x is None else x.numel()
        if x is None or num_elements == 0:
            return None
        if not x.is_contiguous():
            x = _contiguous(x)
        if num_elements <= MAX_EXACT_ELEMENTS:
            table = self._table(x, num_elements)
            table.values.select(0, len(table.numbers)).copy_(x.view(-1))
        else:
            shape, strides = _grid(num_elements)
            table = self._table(x, math.prod(shape))
            row = len(table.numbers)
            assert table.smallest is not None and table.largest is not None
            ends = (table.smallest.select(0, row), table.largest.select(0, row))
            torch.aminmax(x if x.itemsize > 1 else x.float(), out=ends)  # passes nan on; now x is in the cache
            table.values.select(0, row).view(shape).copy_(x.as_strided(shape, strides, x.storage_offset()))
        table.numbers.append(self._num_samples)
        table.num_elements.append(num_elements)
        self._num_samples += 1
        return table.numbers[-1]

    def _table(self, x: Tensor, size: int) -> _Table:
        key = (size == x.numel(), size, x.dtype, x.device)
        table = self._open.get(key)
        if table is None or len(table.numbers) == len(table.values):
            table = self._open[key] = _Table.like(x, size)
            self._tables.append(table)
        return table

    def summarize(self, groups: Sequence[Sequence[int | None]]) -> list["TensorStatistics"]:
        """Statistics of each group of numbers, as if its tensors were concatenated; forgets all samples.

        One transfer for each device and type.
        """
        held = [(number, owner) for owner, group in enumerate(groups) for number in group if number is not None]
        numbers, owners = torch.tensor(held, dtype=torch.long, device="cpu").reshape(-1, 2).T
        with torch.no_grad():
            rows = _to_host(self._tables, self._num_samples)
            columns = _merged(_Rows(*(values[numbers] for values in rows)), owners, len(groups))
        self._forget()
        return [
            TensorStatistics(norm, mean, std, max_abs, fraction_zero, int(num_bad), headroom)
            for norm, mean, std, max_abs, fraction_zero, num_bad, headroom in columns.tolist()
        ]


def _contiguous(x: Tensor) -> Tensor:
    """The same elements in the order of memory: of a transposed or channels_last tensor nothing is copied."""
    strides = x.stride()
    return x.permute(sorted(range(x.ndim), key=lambda dim: -strides[dim])).contiguous()


@cache
def _grid(num_elements: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shape and strides of the sample of a large tensor.

    The stride between runs shares no divisor with the element count, hence none with any dimension: one that divides
    a row would always read the same columns, one that is a multiple of 9 always begin at the same tap of a kernel.
    """
    stride = math.ceil(num_elements / _NUM_RUNS * 1.0618)  # not just 1 beyond a row: that would sweep it only once
    while math.gcd(stride, num_elements) > 1:
        stride += 1
    return ((num_elements - _RUN) // stride + 1, _RUN), (stride, 1)


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics of one tensor, or of several as if concatenated.

    Tensors of up to 16,384 elements are measured whole. Of larger ones

    - max_abs and headroom_bits are exact, and so is whether num_nonfinite is 0: a single NaN anywhere is noticed;
    - the rest are estimates from up to 4,096 elements, 512 evenly spread runs of 8 neighbours. Typical errors: mean
      1/60 of std, fraction_zero 0.008 at most, norm and std 1% for normal values; sqrt((k - 1) / 16,000) of
      themselves for values of kurtosis k, so 8% for k = 100; all up to 3 times that where neighbours are alike.
      Rare values may be missed: a fraction_zero of 0 says "fewer than about 1 in 1,000". num_nonfinite is scaled up
      from the sample, and 1 where the sample holds none. Never is norm < max_abs, nor std beyond half the range.

    Where num_nonfinite > 0, norm and max_abs are inf or nan, mean is inf, -inf or nan, std and fraction_zero are nan,
    headroom_bits is -inf or nan. An empty tensor gives zeros and an infinite headroom. Extreme finite values overflow
    nothing: norm is inf only beyond float64's range.
    """

    norm: float
    """L2 norm."""
    mean: float
    """Mean."""
    std: float
    """Standard deviation of the population, exactly 0 for constant tensors."""
    max_abs: float
    """Largest magnitude."""
    fraction_zero: float
    """Share of exact zeros, 0 to 1. In tensors that reach beyond 1e12, what is 1e-45 of the largest counts as zero."""
    num_nonfinite: int
    """How many elements are NaN or Inf."""
    headroom_bits: Annotated[float, "bit"]
    """log2 of the dtype's largest number over `max_abs`, of several tensors the least: how many times the values can
    double before they overflow. Inf where all is zero."""

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorStatistics":
        """Statistics of one floating or complex tensor of any shape, read at once: a host synchronisation."""
        samples = Samples()
        return samples.summarize([[samples.add(tensor)]])[0]

    def to_dict(self) -> dict[str, float]:
        """Field -> number, as a record's `layers` have it."""
        return dict(vars(self))


class _Rows(NamedTuple):
    """Numbers of N tensors, each (N,), float64, on the host. Of a tensor that is not finite only its extremes and
    num_nonfinite mean something."""

    num_elements: Tensor
    smallest: Tensor
    largest: Tensor
    mean: Tensor
    norm: Tensor
    std: Tensor
    num_zero: Tensor
    num_nonfinite: Tensor
    headroom: Tensor


def _to_host(tables: Sequence[_Table], num_samples: int) -> _Rows:
    orders: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    columns: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    number, limit = torch.empty(2, num_samples, dtype=torch.float64, device="cpu")
    for table in tables:
        limit[table.numbers] = torch.finfo(table.values.dtype).max
        number[table.numbers] = torch.tensor(table.num_elements, dtype=torch.float64, device="cpu")
        measured = _measured(table)
        orders.setdefault((measured.device, measured.dtype), []).extend(table.numbers)
        columns.setdefault((measured.device, measured.dtype), []).append(measured)
    found = torch.empty(8, num_samples, dtype=torch.float64, device="cpu")
    for kind, order in orders.items():
        found[:, order] = torch.cat(columns[kind], dim=1).cpu().double()
    size, smallest, largest, scale, mean, norm, std, num_nonzero = found
    share = number / size
    num_bad = torch.where(scale == 0, (num_nonzero * share).round().clamp(min=1), 0)
    num_zero = (size - num_nonzero) * share
    norm = norm / scale * share.sqrt()
    headroom = limit.log2() - torch.maximum(smallest.neg(), largest).log2()
    return _Rows(number, smallest, largest, mean / scale, norm, std / scale, num_zero, num_bad, headroom)


def _measured(table: _Table) -> Tensor:
    """What the K samples of a table give, (8, K), float32 or float64, on their device. Overwrites them.

    Rows: sample size, smallest, largest, scale; mean, norm, std and count of non-zeros of the sample times `scale`,
    which is 1 in the ordinary case, a factor against overflow and underflow of squares for extreme magnitudes, and 0
    where an element is not finite. The count is taken after scaling, so with scale 0 (0 * inf is nan) it is that of
    the non-finite: one pass gives the zeros of a healthy tensor and the bad elements of a sick one.
    """
    num = len(table.numbers)
    values = table.values[:num]
    if values.dtype not in _SAFE_RANGE:
        values = values.float()
    if table.smallest is not None and table.largest is not None:
        smallest, largest = table.smallest[:num].to(values), table.largest[:num].to(values)
    else:
        smallest, largest = values.amin(1), values.amax(1)  # on the CPU ten times faster than aminmax
    magnitude = torch.maximum(smallest.neg(), largest)
    # 1 inside the safe range; 0 for inf and nan; 1 for an all-zero tensor, whose quotient is inf
    scale = magnitude.clamp(*_SAFE_RANGE[values.dtype]).div_(magnitude).nan_to_num_(nan=0.0, posinf=1.0)
    values.mul_(scale[:, None])
    mean, norm = values.mean(1), torch.linalg.vector_norm(values, dim=1)
    size = values.shape[1]
    std = torch.linalg.vector_norm(values - mean[:, None], dim=1) / math.sqrt(size)
    num_nonzero = values.ne_(0).sum(1)  # in place and summed as floats, 3 times faster than count_nonzero
    return torch.stack([torch.full_like(mean, size), smallest, largest, scale, mean, norm, std, num_nonzero])


def _merged(rows: _Rows, owners: Tensor, num_groups: int) -> Tensor:
    """The fields of TensorStatistics, (groups, 7). Summed is in units of a group's largest: no square overflows."""
    info = torch.finfo(torch.float64)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(num_groups).index_add_(0, owners, values)

    def extreme(values: Tensor, which: str) -> Tensor:  # nan where there is one, 0 of nothing
        return values.new_zeros(num_groups).scatter_reduce_(0, owners, values, which, include_self=False)

    number = total(rows.num_elements)
    weight = rows.num_elements / number[owners]
    smallest, largest = extreme(rows.smallest, "amin"), extreme(rows.largest, "amax")
    max_abs = torch.maximum(smallest.neg(), largest)
    mean = total(rows.mean * weight).clamp(smallest, largest)
    peak = extreme(rows.norm, "amax").clamp(info.tiny, info.max)  # clamped: 0 / 0 and inf / inf would be nan
    norm = (total((rows.norm / peak[owners]).square()).sqrt() * peak).maximum(max_abs)
    reach = largest / 2 - smallest / 2  # no standard deviation exceeds it
    unit = reach.clamp(min=info.tiny)[owners]
    inside = (rows.std / unit).clamp(max=1)
    offset = 2 * ((rows.mean / 2 - mean[owners] / 2) / unit).clamp(-1, 1)
    std = reach * total((inside.square() + offset.square()) * weight).sqrt().clamp(max=1)
    fraction_zero = (total(rows.num_zero) / number.clamp(min=1)).clamp(0, 1)
    is_bad = ~max_abs.isfinite()
    norm, mean = norm.where(~is_bad, max_abs), mean.where(~is_bad, smallest + largest)
    std, fraction_zero = std.where(~is_bad, math.nan), fraction_zero.where(~is_bad, math.nan)
    headroom = rows.headroom.new_full((num_groups,), math.inf).scatter_reduce_(0, owners, rows.headroom, "amin")
    return torch.stack([norm, mean, std, max_abs, fraction_zero, total(rows.num_nonfinite), headroom], dim=1)
