"""What a check states and what it saw; and the tensors of a sample's path, measured."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from shadowlab.encoded_batch import DOWNSCALE


@dataclass(frozen=True)
class Check:
    """One proved or refuted statement."""

    name: str
    passed: bool
    expected: str
    seen: str
    mend: str
    """What to do where it failed."""
    tolerated: bool = False
    """A failure that was permitted: a warning."""


@dataclass(frozen=True)
class PathRow:
    """One tensor of the path, measured."""

    stage: str
    """Where in the path: `VAE`."""
    tensor: str
    form: str
    """Its shape in letters, `(B, 4, h, w)`."""
    shape: list[int]
    dtype: str
    expected_dtype: str
    low: float
    high: float
    finite: bool
    in_range: bool
    """Within the limits it must keep, where there are any."""

    @property
    def faults(self) -> list[str]:
        """What is wrong with it alone; shapes are judged against those of the other rows."""
        found = []
        if self.dtype != self.expected_dtype:
            found.append(f"{self.tensor} is {self.dtype}, not {self.expected_dtype}")
        if not self.in_range:
            found.append(f"{self.tensor} in [{self.low:.3g}, {self.high:.3g}]")
        return found


class PathTable:
    """Shape, dtype and range of every tensor from the pictures to the loss."""

    def __init__(self) -> None:
        self.rows: list[PathRow] = []

    def add(
        self,
        stage: str,
        tensor: str,
        value: Tensor,
        form: str,
        limits: tuple[float, float] | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Measure `value`, a tensor of any shape that has an element.

        Args:
            form: its shape in letters, `(B, 4, h, w)`. limits: the closed range it must keep; None for what a model is
                free to predict.
            dtype: what it must have.
        """
        value = value.detach()
        low, high = float(value.amin()), float(value.amax())
        finite = bool(value.isfinite().all())
        self.rows.append(
            PathRow(
                stage=stage,
                tensor=tensor,
                form=form,
                shape=list(value.shape),
                dtype=str(value.dtype).removeprefix("torch."),
                expected_dtype=str(dtype).removeprefix("torch."),
                low=low,
                high=high,
                finite=finite,
                in_range=finite and (limits is None or (limits[0] <= low and high <= limits[1])),
            )
        )

    def check(self) -> Check:
        """All tensors finite, in range, of their dtype and of the shape that their form states."""
        letters: dict[str, int] = {}
        faults = [fault for row in self.rows for fault in row.faults]
        for row in self.rows:
            symbols = row.form.strip("()").replace(" ", "").split(",")
            symbols = [symbol for symbol in symbols if symbol]
            wanted = [
                int(s) if s.isdigit() else letters.setdefault(s, size)
                for s, size in zip(symbols, row.shape, strict=False)
            ]
            if len(symbols) != len(row.shape) or wanted != row.shape:
                faults.append(f"{row.tensor} {tuple(row.shape)} is not {row.form}")
        if {"h", "H"} <= letters.keys() and letters["h"] * DOWNSCALE != letters["H"]:
            faults.append(f"latent height {letters.get('h')} is not an eighth of {letters.get('H')}")
        return Check(
            "shapes, dtypes and ranges along the path",
            not faults,
            f"{len(self.rows)} tensors of the stated shape and dtype, finite and in range",
            "; ".join(faults) or f"{len(self.rows)} of {len(self.rows)}",
            "see the row in the path table; the first wrong one is the cause",
        )

    def rows_as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]
