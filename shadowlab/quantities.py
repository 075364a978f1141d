"""A quantity of the harness next to what its specification gives, and in which way the two differ.

Legend: B rows, the first dimension.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shadowlab.checks import Check

_ROWS = 64  # more are not looked through for exchanged ones
_SHOWN = 160  # characters of a value that is no tensor


@dataclass(frozen=True, eq=False)
class Quantity:
    """One number, tensor or list of names, as it was seen and as it should be."""

    name: str
    """`step 2, noise`."""
    place: str
    """Where it is computed: `shadowlab/training/step.py, objective_loss`."""
    seen: Any
    """None where it was never computed."""
    wanted: Any
    tolerance: float = 1e-5
    """Of tensors and floats: relative to the largest magnitude that is wanted, at least 1e-6 of it."""
    how: Callable[[], str] | None = None
    """Says more about a difference that has been found; empty where it knows nothing."""

    def difference(self) -> str:
        """What differs, in words; empty where nothing does."""
        if self.seen is None and self.wanted is not None:
            return "was never computed"
        if not isinstance(self.seen, Tensor | float) and not isinstance(self.wanted, Tensor):
            return "" if self.seen == self.wanted else f"is {_brief(self.seen)}, not {_brief(self.wanted)}"
        found = _tensor_difference(_tensor(self.seen), _tensor(self.wanted), self.tolerance)
        return (self.how() if found and self.how is not None else "") or found


def first_difference(quantities: Iterable[Quantity]) -> tuple[Quantity | None, str, int]:
    """The first quantity that differs, in which way, and how many were the same before it."""
    same = 0
    for quantity in quantities:
        if found := quantity.difference():
            return quantity, found, same
        same += 1
    return None, "", same


def agreement(name: str, quantities: Iterable[Quantity]) -> Check:
    """That all are as they should be; the first that differs names its place. `quantities` may be computed lazily."""
    quantity, found, same = first_difference(quantities)
    return Check(
        name,
        quantity is None,
        "every quantity as its specification gives it",
        f"{same} of {same}" if quantity is None else f"{quantity.name} {found} ({quantity.place})",
        "" if quantity is None else f"see {quantity.place}: the {same} quantities before it are right",
    )


def same(seen: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether both tensors, of any shape, are of one shape and equal within the tolerance of a `Quantity`."""
    return not _tensor_difference(seen, wanted, tolerance)


def _tensor(value: Any) -> Tensor:
    return value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _tensor_difference(seen: Tensor, wanted: Tensor, tolerance: float) -> str:
    if seen.shape != wanted.shape:
        return f"has the shape {tuple(seen.shape)}, not {tuple(wanted.shape)}"
    if seen.dtype == wanted.dtype and torch.equal(seen, wanted):
        return ""
    s, w = seen.double(), wanted.double()
    limit = tolerance * max(float(w.abs().amax()) if w.numel() else 0.0, 1e-6)
    if not bool(s.isfinite().all()) and bool(w.isfinite().all()):
        return "is not finite"
    off = (s - w).abs()
    return "" if not off.numel() or float(off.amax()) <= limit else _way(s, w, off, limit)


def _way(s: Tensor, w: Tensor, off: Tensor, limit: float) -> str:
    """The simplest change of `w` that gives `s`, both float64 of one shape; else how far they are apart."""
    if s.numel() == 1:
        return f"is {float(s):.6g}, not {float(w):.6g}"
    for text, changed in _changes(s, w):
        if changed.shape == s.shape and float((s - changed).abs().amax()) <= 4 * limit:
            return text
    if found := _rows(s, w, limit):
        return found
    if found := _affine(s, w, limit):
        return found
    wrong = off > limit
    rows = wrong.flatten(1).any(dim=1).nonzero().flatten().tolist() if s.ndim > 1 and len(s) <= _ROWS else []
    where = f" in rows {', '.join(map(str, rows))} of {len(s)}" if 0 < len(rows) < len(s) else ""
    return f"is off by {float(off.amax()):.3g} at most, in {int(wrong.sum())} of {s.numel()} values{where}"


def _changes(s: Tensor, w: Tensor) -> Iterable[tuple[str, Tensor]]:
    yield "is zero everywhere", torch.zeros_like(w)
    yield "is negated", -w
    yield "is inverted (1 - x)", 1 - w
    if w.ndim >= 3:
        yield "is mirrored left to right", w.flip(-1)
        yield "is upside down", w.flip(-2)
        yield "is transposed", w.transpose(-1, -2)
    yield "is binarised", (w >= 0.5).double()
    low, high = float(s.amin()), float(s.amax())
    if low > float(w.amin()) or high < float(w.amax()):
        yield f"is clamped to [{low:.4g}, {high:.4g}]", w.clamp(low, high)


def _rows(s: Tensor, w: Tensor, limit: float) -> str:
    """What happened to whole rows, or to slices along the second dimension."""
    if s.ndim and 1 < len(s) <= _ROWS:
        if float((s - s[:1]).abs().amax()) <= limit < float((w - w[:1]).abs().amax()):
            return "is the same for every sample"
        if found := _exchanged(s, w, limit):
            return f"has its samples exchanged: {found}"
    if s.ndim > 1 and 1 < s.shape[1] <= _ROWS and (found := _exchanged(s.transpose(0, 1), w.transpose(0, 1), limit)):
        return f"has its channels exchanged: {found}"
    return ""


def _exchanged(s: Tensor, w: Tensor, limit: float) -> str:
    distance = (s[:, None] - w[None]).abs().flatten(2).amax(dim=2) if s.ndim > 1 else (s[:, None] - w[None]).abs()
    best, order = distance.min(dim=1)
    return ", ".join(map(str, order.tolist())) if float(best.amax()) <= limit else ""


def _affine(s: Tensor, w: Tensor, limit: float) -> str:
    ratio = float((s * w).sum() / w.square().sum()) if float(w.abs().amax()) else 0.0
    if ratio and float((s - ratio * w).abs().amax()) <= 4 * limit * max(1.0, abs(ratio)):
        return f"is {ratio:.4g} times what it should be"
    centred = w - w.mean()
    power = float(centred.square().sum())
    if not power:
        return ""
    slope = float((s * centred).sum()) / power
    offset = float(s.mean()) - slope * float(w.mean())
    if slope and float((s - slope * w - offset).abs().amax()) <= 4 * limit * max(1.0, abs(slope)):
        return f"is {slope:.4g} x {'+' if offset >= 0 else '-'} {abs(offset):.4g} of what it should be"
    return ""
