"""Runs on the terminal: a list of them, a run's layers, its health."""

from shadowlab.views.terminal.health import find_rules, list_rules, run_health
from shadowlab.views.terminal.inspect import Query, run_inspect
from shadowlab.views.terminal.runs import run_runs

__all__ = [
    "Query",
    "find_rules",
    "list_rules",
    "run_health",
    "run_inspect",
    "run_runs",
]
