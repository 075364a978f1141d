"""The two tables of check-forward, tensors along the path and checks, and its summary."""

from collections.abc import Sequence

from rich.text import Text

from shadowlab.checks import Check, PathTable
from shadowlab.console import Column, FittedTable


def path_table(path: PathTable) -> FittedTable:
    """One row a tensor."""
    names = ("stage", "tensor", "form", "shape", "dtype", "range", "")
    table = FittedTable(
        [Column(name, is_head=name in ("stage", "tensor")) for name in names],
        title="path of a sample through the model, measured",
    )
    for row in path.rows:
        shape = "x".join(map(str, row.shape)) or "scalar"
        verdict = Text("FAIL", "red") if row.faults else Text("ok", "green")
        table.add_row(row.stage, row.tensor, row.form, shape, row.dtype, f"[{row.low:.3g}, {row.high:.3g}]", verdict)
    return table


def checks_table(checks: Sequence[Check]) -> FittedTable:
    table = FittedTable(
        (
            Column("", is_head=True),
            Column("check", is_head=True, wraps=True),
            Column("expected", wraps=True),
            Column("saw", wraps=True),
            Column("what to do", wraps=True),
        ),
        title="checks",
    )
    for check in checks:
        word = Text("pass", "green") if check.passed else _verdict(check)
        table.add_row(word, check.name, check.expected, check.seen, "" if check.passed else check.mend)
    return table


def failures(checks: Sequence[Check]) -> FittedTable | None:
    """The checks that failed, tolerated or not; None where all passed."""
    failed = [check for check in checks if not check.passed]
    return checks_table(failed) if failed else None


def counts(checks: Sequence[Check]) -> str:
    """`24 of 26 checks passed, 1 warning, 1 failed`."""
    passed = sum(check.passed for check in checks)
    warned = sum(check.tolerated and not check.passed for check in checks)
    failed = len(checks) - passed - warned
    found = [f"{passed} of {len(checks)} checks passed"]
    found += [f"{warned} warning{'s' if warned > 1 else ''}"] if warned else []
    found += [f"{failed} failed"] if failed else []
    return ", ".join(found)


def _verdict(check: Check) -> Text:
    return Text("WARN", "yellow") if check.tolerated else Text("FAIL", "red")
