"""A table of hosts: what it takes to watch each, and whether the watch is right there."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shadowlab.bench.hosts.host import HOSTS, Host
from shadowlab.bench.hosts.net import PHASES
from shadowlab.bench.hosts.ranks import try_together
from shadowlab.bench.hosts.trial import ACCUMULATIONS, Ranks, Row, try_host
from shadowlab.errors import UserError

_COLUMNS = (*PHASES, "same bits")


@dataclass(frozen=True)
class HostReport:
    """Of all hosts that were asked for."""

    rows: Sequence[Row]
    missing: dict[str, str]
    """Host -> why it could not run."""

    @property
    def passed(self) -> bool:
        """Whether every host that could run is right throughout."""
        return all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "rows": [row.to_json() for row in self.rows], "missing": self.missing}


def run_hosts(only: Sequence[str] | None = None, *, on_host: Callable[[str], None] = lambda name: None) -> HostReport:
    """Try every host, or those whose file in `loops` is named, with each accumulation.

    Args:
        on_host: gets a host's name as it begins.

    Raises:
        UserError: there is no such host.
    """
    hosts = _chosen(only)
    missing = {host.name: why for host in hosts if (why := host.missing) is not None}
    present = [host for host in hosts if host.name not in missing]
    rows: list[Row] = []
    for host in present:
        if host.num_processes == 1:
            on_host(host.name)
            rows += [try_host(host, accumulation, Ranks()) for accumulation in ACCUMULATIONS]
    several = [host for host in present if host.num_processes > 1]
    if several:
        on_host(" and ".join(host.name for host in several))
        rows += try_together(several, several[0].num_processes)
    return HostReport(rows, missing)


def _chosen(only: Sequence[str] | None) -> list[Host]:
    known = [host.file for host in HOSTS]
    for name in only or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"no host is called {name}{hint}; they are {', '.join(known)}")
    return [host for host in HOSTS if not only or host.file in only]


def format_report(report: HostReport) -> str:
    """A line for each host and accumulation, then what was wrong."""
    head = ["host", "lines added", "accumulation", *_COLUMNS]
    lines = [head, *([row.host, str(row.num_added), str(row.accumulation), *_cells(row)] for row in report.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    table.insert(1, "  ".join("-" * width for width in widths))
    wrong = [
        f"{row.host}, accumulation {row.accumulation}, {key}: {text}"
        for row in report.rows
        for key, text in row.wrong.items()
        if text
    ]
    return "\n".join([*table, *wrong, *(f"{name}: {why}" for name, why in report.missing.items())])


def _cells(row: Row) -> list[str]:
    return ["WRONG" if row.wrong[key] else "yes" if key == "same bits" else "right" for key in _COLUMNS]
