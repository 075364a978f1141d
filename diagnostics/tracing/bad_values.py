"""What was seen of the bad elements in one tensor: the first of them, its index, the rows that hold some."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.tracing.provenance import Memory


@dataclass(frozen=True)
class BadValues:
    """Seen on the host; the defaults, `UNSEEN`, where nobody looked closer."""

    shape: tuple[int, ...] = ()
    """Of the tensor that holds them."""
    dtype: torch.dtype | None = None
    value: str = "nan"
    """The first bad element: `nan`, `inf` or `-inf`."""
    index: tuple[int, ...] = ()
    """Of the first bad element."""
    slot: int = 0
    """Which of the operator's outputs it is in."""
    whole: tuple[int, ...] = ()
    """Shape of what has `rows`: the tensor, or, where it is a view, what it is a view of."""
    rows: tuple[int, ...] = ()
    """Indices along the first dimension of `whole` with bad elements, 4096 at most."""


UNSEEN = BadValues()


def look_at(tensor: Tensor, where: Tensor, memory: Memory, slot: int = 0) -> BadValues:
    """Read the first element that a mask selects.

    Args:
        tensor: any shape, floating or complex.
        where: booleans in the tensor's shape, at least one true.
        memory: knows what the tensor is a view of.
    """
    position = int(where.reshape(-1).to(torch.uint8).argmax())
    whole, rows = memory.rows(tensor, where)
    return BadValues(
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        value=value_name(tensor.reshape(-1)[position]),
        index=tuple(int(i) for i in torch.unravel_index(torch.tensor(position), tensor.shape)),
        slot=slot,
        whole=whole,
        rows=rows,
    )


def value_name(value: Tensor) -> str:
    """`nan`, `inf` or `-inf` for a scalar that is not finite; of a complex one its first bad part."""
    if value.is_complex():
        parts = torch.view_as_real(value)
        value = parts[~torch.isfinite(parts)][0]
    return str(float(value.detach()))
