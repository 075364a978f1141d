"""Faults put on purpose into the tiny shadow model, so that a user sees what each looks like."""

from shadowlab.drill.run import find_drills, list_drills, report_drill, run_drill

__all__ = [
    "find_drills",
    "list_drills",
    "report_drill",
    "run_drill",
]
