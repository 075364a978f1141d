"""The watch in the loops of everybody: each kind of host, each phase of a step, with and without accumulation."""

from shadowlab.bench.hosts.host import HOSTS
from shadowlab.bench.hosts.report import HostReport, format_report, run_hosts
from shadowlab.bench.hosts.source import bare, num_added

__all__ = [
    # The table
    "HostReport",
    "run_hosts",
    "format_report",
    # The loops
    "HOSTS",
    "bare",
    "num_added",
]
