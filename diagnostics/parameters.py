"""Gradient norm and update-to-weight ratio of every parameter, and histograms that survive bad values."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Elements of a parameter that the update ratio is measured on: exact for small parameters, an even
# stride through large ones. SDXL's snapshot is then 0.3 GiB instead of a copy of its 7.5 GiB.
MAX_SAMPLED_ELEMENTS = 65_536


def _sampled(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // MAX_SAMPLED_ELEMENTS))]


@dataclass(frozen=True)
class ParameterRecord:
    """One parameter in one step.

    `gradient_norm`: before clipping; None where no gradient arrived. `update_ratio`: ||change|| / ||weight||, both
    on the sampled elements; None where the weight was all zero before the step (a zero-initialised layer).
    """

    gradient_norm: float | None
    update_ratio: float | None


class ParameterStatistics:
    """Measures gradients before the optimizer step and the change that the step made.

    statistics = ParameterStatistics(model)
    loss.backward()
    statistics.before_step()
    optimizer.step()
    statistics.after_step()
    records = statistics.collect()      # the only transfer to the host
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._gradient_norms: dict[str, Tensor] = {}
        self._snapshots: dict[str, Tensor] = {}
        self._ratios: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """Call after backward (and unscaling), before clipping."""
        self._gradient_norms = gradient_norms(self._parameters)
        self._snapshots = {name: _sampled(p).clone() for name, p in self._parameters.items()}

    def after_step(self) -> None:
        """Call after `optimizer.step()`."""
        names = list(self._snapshots)
        old = [snapshot.float() for snapshot in self._snapshots.values()]
        new = [_sampled(self._parameters[name]).float() for name in names]
        changes = torch._foreach_norm(torch._foreach_sub(new, old))
        weights = torch._foreach_norm(old)
        self._ratios = {name: c / w for name, c, w in zip(names, changes, weights, strict=True)}
        self._snapshots = {}

    def collect(self) -> dict[str, ParameterRecord]:
        """Parameter name -> record, and forget. Empty if nothing was measured."""
        norms = _to_host(self._gradient_norms)
        ratios = _to_host(self._ratios)
        self._gradient_norms, self._ratios = {}, {}
        records = {}
        for name in self._parameters if norms or ratios else ():
            ratio = ratios.get(name)
            zero_weight = ratio is not None and (ratio == float("inf") or ratio != ratio) and name in norms
            records[name] = ParameterRecord(norms.get(name), None if zero_weight else ratio)
        return records


def gradient_norms(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """L2 norm of each gradient that exists, scalars on the device, float32 or wider."""
    named = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    if not named:
        return {}
    gradients = [g if g.dtype in (torch.float32, torch.float64) else g.float() for g in named.values()]
    return dict(zip(named, torch._foreach_norm(gradients), strict=True))


def total_norm(norms: Iterable[Tensor]) -> Tensor:
    """Global L2 norm from per-tensor norms, in float64, so that no finite norms overflow it. A scalar."""
    return torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]))


def _to_host(values: dict[str, Tensor]) -> dict[str, float]:
    if not values:
        return {}
    return dict(zip(values, torch.stack([v.double() for v in values.values()]).tolist(), strict=True))


@dataclass(frozen=True)
class Histogram:
    """Counts of the finite values in equal bins between `low` and `high`; the others are counted apart."""

    low: float
    high: float
    counts: list[int]
    num_nan: int
    num_inf: int


def histogram(tensor: Tensor, num_bins: int = 64) -> Histogram:
    """Histogram of any floating tensor; a host read, so for logging steps. All-bad and empty tensors give no bins."""
    flat = tensor.detach().reshape(-1).float()
    num_nan, num_inf = int(flat.isnan().sum()), int(flat.isinf().sum())
    finite = flat[torch.isfinite(flat)].cpu()
    if finite.numel() == 0:
        return Histogram(0.0, 0.0, [], num_nan, num_inf)
    low, high = finite.min().item(), finite.max().item()
    if low == high:
        return Histogram(low, high, [finite.numel()], num_nan, num_inf)
    # Fractions of the range in float64: high - low may exceed float32.
    position = (finite.double() - low) / (high - low) * num_bins
    counts = torch.bincount(position.long().clamp_(max=num_bins - 1), minlength=num_bins)
    return Histogram(low, high, counts.tolist(), num_nan, num_inf)
