"""What one tensor tells of non-finite values. Functions here read on the host: for use after a step has tripped."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.statistics import dense


@dataclass(frozen=True)
class Evidence:
    """The bad elements of one tensor, as numbers, so that the tensor need not be kept.

    value: the first bad element, `nan`, `inf` or `-inf`. samples: indices along the batch dimension that hold bad
    elements, empty where the tensor has none.
    """

    value: str
    samples: tuple[int, ...]
    dtype: str
    num_nonfinite: int


def evidence(tensor: Tensor, batch_size: int | None) -> Evidence:
    """Look at a tensor that `is_bad`. Its first dimension is the batch if it is `batch_size` long; with None, never."""
    values = _values(tensor)
    bad = ~torch.isfinite(values)
    samples: tuple[int, ...] = ()
    if tensor.ndim and tensor.shape[0] == batch_size == bad.shape[0]:
        samples = tuple(bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Evidence(str(values[bad][0].item()), samples, dtype, int(bad.sum()))


def is_bad(tensor: Tensor) -> bool:
    """Whether any element is NaN or Inf."""
    values = _values(tensor)
    return values.numel() > 0 and not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def is_harmful(tensor: Tensor) -> bool:
    """Bad, and not an additive attention mask: zeros and -inf, nothing else, in two dimensions or more."""
    if not is_bad(tensor):
        return False
    values = _values(tensor)
    is_zero = values == 0
    return not (tensor.ndim > 1 and bool(is_zero.any()) and bool((is_zero | (values == -torch.inf)).all()))


def has_nan(tensor: Tensor) -> bool:
    return bool(_values(tensor).isnan().any())


def is_ceiling(tensor: Tensor) -> bool:
    """Whether a bad tensor is all at most 0, with -inf and no NaN: a causal mask, ALiBi, a table of logarithms."""
    return bool((_values(tensor) <= 0).all())


def largest_finite(tensors: Iterable[Tensor]) -> float | None:
    """Largest finite magnitude in any of them; None where there is none."""
    found: list[float] = []
    for tensor in tensors:
        values = _values(tensor)
        finite = values[torch.isfinite(values)]
        if finite.numel():
            found.append(float(finite.abs().amax()))
    return max(found, default=None)


def _values(tensor: Tensor) -> Tensor:
    values = dense(tensor)
    if values is None:
        return torch.zeros(0)
    return values.float() if values.dtype.itemsize == 1 else values  # 8-bit types have no comparisons
