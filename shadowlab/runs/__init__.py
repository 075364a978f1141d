"""Run folders: what is in one, how it is found, listed and resumed."""

from shadowlab.runs.folder import RunFolder, default_name, refuse_pipe
from shadowlab.runs.listing import RunSummary, list_runs
from shadowlab.runs.lookup import find_run, read_history, run_places, run_to_resume, stage_passed, telling_where
from shadowlab.runs.resume import changes, resumed_config, with_processes

__all__ = [
    "RunFolder",
    "RunSummary",
    "changes",
    "default_name",
    "find_run",
    "list_runs",
    "read_history",
    "refuse_pipe",
    "resumed_config",
    "run_places",
    "run_to_resume",
    "stage_passed",
    "telling_where",
    "with_processes",
]
