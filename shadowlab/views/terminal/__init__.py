"""A run on the terminal: its layers, its health."""

from shadowlab.views.terminal.health import find_rules, list_rules, run_health
from shadowlab.views.terminal.inspect import Query, run_inspect

__all__ = [
    "Query",
    "find_rules",
    "list_rules",
    "run_health",
    "run_inspect",
]
