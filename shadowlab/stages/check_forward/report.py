"""The two tables of check-forward: tensors along the path, and checks."""

from rich.markup import escape
from rich.table import Table

from shadowlab.checks import Check, PathTable


def path_table(path: PathTable) -> Table:
    """One row a tensor."""
    table = Table(title="path of a sample through the model, measured")
    for column in ("stage", "tensor", "form", "shape", "dtype", "range", ""):
        table.add_column(column)
    for row in path.rows:
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
