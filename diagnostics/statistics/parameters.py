"""Gradient norm and update-to-weight ratio of every parameter, and histograms that survive bad values."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from diagnostics.tensors import dense

# Elements of a parameter that the update ratio is measured on: exact for small parameters, an even
# stride through large ones: SDXL's snapshot is then less than 0.1 GiB instead of a copy of its 7.5 GiB, and the norm
# of an update that is spread evenly is off by half a percent.
MAX_SAMPLED_ELEMENTS = 16_384


def sampled(parameter: Tensor) -> Tensor:
    """Up to 16,384 elements of a tensor of any shape, (n,); a view where the memory is dense.

    The stride shares no divisor with the element count, hence none with any dimension: a stride that divides a row
    would always read the same column, one that is a multiple of 9 always the same tap of a 3 x 3 kernel.
    """
    x = dense(parameter)
    if x is None:
        return torch.zeros(0)
    if not x.is_contiguous():  # in the order of memory, so that flattening a channels_last weight copies nothing
        strides = x.stride()
        x = x.permute(sorted(range(x.ndim), key=lambda dim: -strides[dim]))
    flat = x.reshape(-1)
    if flat.numel() <= MAX_SAMPLED_ELEMENTS:
        return flat
    stride = -(-flat.numel() // MAX_SAMPLED_ELEMENTS)
    while math.gcd(stride, flat.numel()) > 1:
        stride += 1
    return flat[::stride]


class _Snapshot:
    """Samples of several parameters of one device, copied into one vector."""

    def __init__(self, parameters: list[Tensor]) -> None:
        samples = [sampled(parameter) for parameter in parameters]
        self.sizes = [sample.numel() for sample in samples]
        self.values = _wide(torch.cat(samples))  # one kernel, not one a parameter; always a copy

    def norms(self) -> list[Tensor]:
        return _norms(list(self.values.split(self.sizes)))


@dataclass(frozen=True)
class ParameterNumbers:
    """One parameter in one step."""

    gradient_norm: float | None
    """L2 norm before clipping; None where no gradient arrived."""
    update_ratio: float | None
    """Norm of the step's change over the norm of the weight, both on the sampled elements. None where these weights
    were all zero before the step (a zero-initialised layer) or no step was made; 0 where the update was lost to
    rounding; NaN or Inf where weights are."""


class ParameterStatistics:
    """Measures gradients before the optimizer step and the change that the step made.

    Parameters that require no gradient at `before_step` are left out. Of a sharded parameter (DTensor) each process
    measures the update ratio of its own shard; gradient norms are those of the whole.

        statistics = ParameterStatistics(model)
        loss.backward()
        statistics.before_step()
        optimizer.step()
        statistics.after_step()
        numbers = statistics.collect()      # the only transfer to the host
    """

    def __init__(self, model: nn.Module) -> None:
        self._named = dict(model.named_parameters())
        self._gradient_norms: dict[str, Tensor] = {}
        self._snapshots: list[tuple[list[str], _Snapshot]] | None = None
        self._changes: dict[str, Tensor] = {}  # norms of the samples' change
        self._weights: dict[str, Tensor] = {}  # norms of the samples before the step
        self._measured: list[str] = []

    def before_step(self, norms: Mapping[str, Tensor] | None = None) -> None:
        """Call after backward (and unscaling), before clipping.

        Args:
            norms: scalars, what `gradient_norms` gave for these gradients, where the loop has it.
        """
        trained = {name: p for name, p in self._named.items() if p.requires_grad}
        self._measured = list(trained)
        self._gradient_norms = gradient_norms(trained) if norms is None else dict(norms)
        self._changes, self._weights = {}, {}
        kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name, p in trained.items():
            kinds.setdefault((p.device, p.dtype), []).append(name)
        self._snapshots = [(names, self._snapshot(names)) for names in kinds.values()]

    def after_step(self) -> None:
        """Call after `optimizer.step()`.

        Raises:
            RuntimeError: `before_step` was not called for this step.
        """
        if self._snapshots is None:
            raise RuntimeError("after_step without before_step: there are no weights to compare with")
        for names, old in self._snapshots:
            change = self._snapshot(names)
            change.values -= old.values  # exact for neighbouring numbers: nothing is lost before the float64 norm
            self._changes |= dict(zip(names, change.norms(), strict=True))
            self._weights |= dict(zip(names, old.norms(), strict=True))
        self._snapshots = None

    def collect(self) -> dict[str, ParameterNumbers]:
        """Parameter name -> numbers, and forget. Empty if nothing was measured."""
        fetched = _to_host([self._gradient_norms, self._changes, self._weights])
        norms, changes, weights = fetched
        measured = self._measured
        self._gradient_norms, self._changes, self._weights, self._measured = {}, {}, {}, []
        self._snapshots = None
        return {
            name: ParameterNumbers(
                norms.get(name), changes[name] / weights[name] if weights.get(name, 0.0) != 0.0 else None
            )
            for name in measured
        }

    def _snapshot(self, names: list[str]) -> _Snapshot:
        return _Snapshot([self._named[name] for name in names])


def gradient_norms(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """L2 norm of each gradient that exists, of any shape: name -> scalar on its device.

    Summed and returned in float64 (float32 on devices that have no float64): finite float32 gradients of 1e20 have
    a finite norm. Of a sparse gradient, the norm of the summed entries; of a sharded one (DTensor), of the whole,
    with one collective for each device mesh, so every process must call.
    """
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    found = {
        name: (_without_partial_sums(g), values)
        for name, g in gradients.items()
        if (values := dense(_without_partial_sums(g))) is not None
    }
    norms = dict(zip(found, _norms([values for _, values in found.values()]), strict=True))
    return _across_shards(norms, {name: gradient for name, (gradient, _) in found.items()})


def total_norm(norms: Iterable[Tensor]) -> Tensor:
    """Global L2 norm from per-tensor norms (scalars), a scalar; float64 unless the device has none. 0 for no norms.

    No finite norms overflow it unless the result exceeds the type; NaN and Inf pass through.
    """
    listed = list(norms)
    if not listed:
        return torch.zeros((), dtype=torch.float64)
    device = listed[0].device
    stacked = torch.stack([norm.to(device, _norm_dtype(device)) for norm in listed])
    return _scaled_norm(stacked)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _norm_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """L2 norms, scalars. A float64 sum of squares holds any float32 magnitude; float64 itself is scaled first."""
    norms: list[Tensor | None] = [_scaled_norm(x) if x.dtype is torch.float64 else None for x in tensors]
    kinds: dict[torch.device, list[int]] = {}
    for index, x in enumerate(tensors):
        if norms[index] is None:
            kinds.setdefault(x.device, []).append(index)
    for device, indices in kinds.items():
        values = torch._foreach_norm([tensors[i] for i in indices], dtype=_norm_dtype(device))
        for index, norm in zip(indices, values, strict=True):
            norms[index] = norm
    return [norm for norm in norms if norm is not None]


def _scaled_norm(x: Tensor) -> Tensor:
    """Norm of x / max |x|, times max |x|: squares neither overflow nor vanish. NaN and Inf come out as they are."""
    if x.numel() == 0:
        return torch.zeros((), dtype=x.dtype, device=x.device)
    largest: Tensor = torch.linalg.vector_norm(x, ord=math.inf)
    # an all-zero or non-finite tensor is left alone: 0 / 0 and inf / inf would be nan
    divisor = torch.where((largest > 0) & (largest < math.inf), largest, 1.0)
    norm: Tensor = torch.linalg.vector_norm(x / divisor)
    return norm * divisor


def _without_partial_sums(gradient: Tensor) -> Tensor:
    """A DTensor whose values are still to be summed over processes, summed; anything else as it is."""
    placements = getattr(gradient, "placements", None)
    if placements is None or not any(placement.is_partial() for placement in placements):
        return gradient
    from torch.distributed.tensor import DTensor, Replicate

    wanted = [Replicate() if placement.is_partial() else placement for placement in placements]
    summed: Tensor = cast(DTensor, gradient).redistribute(placements=wanted)
    return summed


def _across_shards(norms: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms of whole gradients from those of the shards; one all-reduce for each mesh and way of sharding."""
    groups: dict[tuple[Any, tuple[int, ...]], list[str]] = {}
    for name, gradient in gradients.items():
        placements = getattr(gradient, "placements", ())
        sharded = tuple(dim for dim, placement in enumerate(placements) if placement.is_shard())
        if sharded:
            mesh: Any = getattr(gradient, "device_mesh", None)
            groups.setdefault((mesh, sharded), []).append(name)
    for (mesh, dims), names in groups.items():
        squares = torch.stack([norms[name] for name in names]).square()
        for dim in dims:
            torch.distributed.all_reduce(squares, group=mesh.get_group(dim))
        norms |= dict(zip(names, squares.sqrt(), strict=True))
    return norms


def _to_host(groups: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """The scalars of each group as numbers; one transfer for each device."""
    flat = [(number, name, value) for number, group in enumerate(groups) for name, value in group.items()]
    result: list[dict[str, float]] = [{} for _ in groups]
    for device in dict.fromkeys(value.device for _, _, value in flat):
        here = [entry for entry in flat if entry[2].device == device]
        numbers = torch.stack([value for _, _, value in here]).tolist()
        for (number, name, _), value in zip(here, numbers, strict=True):
            result[number][name] = value
    return result


@dataclass(frozen=True)
class Histogram:
    """Counts of the finite values in equal bins between `low` and `high`; the others are counted apart.

    `sum(counts) + num_nan + num_inf` is the number of elements. A constant tensor has one bin with low == high, a
    tensor without finite values none.
    """

    low: float
    """Least finite value, where the first bin begins."""
    high: float
    """Largest finite value, where the last bin ends."""
    counts: list[int]
    """Values in each bin."""
    num_nan: int
    """Values that are NaN."""
    num_inf: int
    """Values that are Inf or -Inf."""


def histogram(tensor: Tensor, num_bins: int = 64) -> Histogram:
    """Histogram of a floating tensor of any shape; a host read, so for logging steps.

    Raises:
        ValueError: num_bins is below 1.
    """
    if num_bins < 1:
        raise ValueError(f"a histogram needs at least 1 bin, not {num_bins}")
    values = dense(tensor)
    flat = torch.zeros(0) if values is None else values.reshape(-1)
    finite = _wide(flat[torch.isfinite(flat)])
    num_nan = int(flat.isnan().sum())
    num_inf = flat.numel() - finite.numel() - num_nan
    if finite.numel() == 0:
        return Histogram(0.0, 0.0, [], num_nan, num_inf)
    low, high = (bound.item() for bound in torch.aminmax(finite))
    if low == high:
        return Histogram(low, high, [finite.numel()], num_nan, num_inf)
    # In float64 and as multiples of a power of two near the largest magnitude: the range of float32's extremes
    # exceeds float32, that of float64's exceeds float64, and that of subnormals would divide by zero.
    exponent = math.frexp(max(abs(low), abs(high)))[1] + 1
    finite = finite.cpu().double().mul_(2.0 ** (-exponent // 2)).mul_(2.0 ** (-exponent - -exponent // 2))
    bottom, top = torch.aminmax(finite)
    position = finite.sub_(bottom).div_(top - bottom).mul_(num_bins)
    counts = torch.bincount(position.long().clamp_(max=num_bins - 1), minlength=num_bins)
    return Histogram(low, high, counts.tolist(), num_nan, num_inf)
