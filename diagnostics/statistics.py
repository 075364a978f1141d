"""Statistics of one tensor, computed where the tensor lives and read later.

A `moments` vector holds sums, not results, so that several calls of a module (gradient accumulation, shared
layers) merge exactly, and nothing is divided or read on the host inside a training step.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

# Positions in a moments vector, float64 (6,).
_COUNT, _SUM, _SUM_SQUARES, _MAX_ABS, _NUM_ZERO, _NUM_NONFINITE = range(6)


def moments(tensor: Tensor) -> Tensor:
    """(6,) float64 on the tensor's device: count, sum, sum of squares, largest magnitude, zeros, non-finite.

    Any floating dtype and shape, empty included. Sums run in float32 for half types. No host synchronisation.
    A non-finite element shows in the sums as it would in the tensor itself; it is counted, never dropped.
    """
    x = tensor.detach()
    if x.numel() == 0:
        return torch.zeros(6, dtype=torch.float64, device=x.device)
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(x, dtype=sums)
    return torch.stack(
        [
            torch.full((), x.numel(), dtype=torch.float64, device=x.device),
            x.sum(dtype=sums).double(),
            norm.double().square(),
            torch.linalg.vector_norm(x, ord=float("inf")).double(),
            (x == 0).sum().double(),
            (~torch.isfinite(x)).sum().double(),
        ]
    )


def merge(parts: list[Tensor]) -> Tensor:
    """Moments of the concatenation of the tensors that `parts` describe; on their device."""
    stacked = torch.stack(parts)
    merged = stacked.sum(dim=0)
    merged[_MAX_ABS] = stacked[:, _MAX_ABS].amax()
    return merged


@dataclass(frozen=True)
class TensorStatistics:
    """What a moments vector says. `std` is the population's; non-finite values are nan or inf here, too."""

    norm: float
    mean: float
    std: float
    max_abs: float
    fraction_zero: float
    num_nonfinite: int

    @classmethod
    def from_moments(cls, values: list[float]) -> "TensorStatistics":
        """`values`: a moments vector on the host. An empty tensor gives zeros."""
        count = max(values[_COUNT], 1.0)
        mean = values[_SUM] / count
        mean_square = values[_SUM_SQUARES] / count
        variance = mean_square - mean * mean
        return cls(
            norm=values[_SUM_SQUARES] ** 0.5,
            mean=mean,
            std=variance**0.5 if not variance < 0 else 0.0,  # `not <` keeps nan; rounding can give -1e-9
            max_abs=values[_MAX_ABS],
            fraction_zero=values[_NUM_ZERO] / count,
            num_nonfinite=int(values[_NUM_NONFINITE]),
        )

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)
