"""The two tables of check-forward: tensors along the path, and checks."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One proved or refuted statement. mend: what to do where it failed. tolerated: a failure that was permitted."""

    name: str
    passed: bool
    expected: str
    seen: str
    mend: str
    tolerated: bool = False


@dataclass(frozen=True)
class PathRow:
    """One tensor of the path, measured."""

    stage: str
    tensor: str
    form: str
    shape: list[int]
    dtype: str
    expected_dtype: str
    low: float
    high: float
    finite: bool
    in_range: bool

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
    """Shape, dtype and range of every tensor between the picture and the shadow map."""

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
        """Measure `value`.

        Args:
            form: its shape in letters. limits: the closed range it must keep; None for what a model is free to say.
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
        if letters.get("h", 0) * 8 != letters.get("H", 0):
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

    def table(self) -> Table:
        table = Table(title="path of a sample through the model, measured")
        for column in ("stage", "tensor", "form", "shape", "dtype", "range", ""):
            table.add_column(column)
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            verdict = "[red]FAIL[/]" if row.faults else "[green]ok[/]"
            table.add_row(
                row.stage,
                escape(row.tensor),
                row.form,
                shape,
                row.dtype,
                escape(f"[{row.low:.3g}, {row.high:.3g}]"),
                verdict,
            )
        return table


def checks_table(checks: list[Check]) -> Table:
    table = Table(title="checks")
    for column in ("", "check", "expected", "saw"):
        table.add_column(column, overflow="fold")
    for check in checks:
        word = "[green]pass[/]" if check.passed else "[yellow]WARN[/]" if check.tolerated else "[red]FAIL[/]"
        table.add_row(word, check.name, escape(check.expected), escape(check.seen))
        if not check.passed:
            table.add_row("", "[bold]what to do[/]", check.mend, "")
    return table
