"""Run folders: what is in one, how it is found, listed and resumed."""

from shadowlab.runs.best import BEST, Best, best_step
from shadowlab.runs.folder import REQUIRED, RunFolder, default_name
from shadowlab.runs.listing import RunSummary, list_runs
from shadowlab.runs.lookup import (
    find_run,
    read_history,
    required_runs,
    run_places,
    run_to_resume,
    stage_passed,
    telling_where,
)
from shadowlab.runs.remedy import Remedy, Warned, write_remedy
from shadowlab.runs.resume import changes, resumed_config, with_processes
from shadowlab.runs.saved import resume_point
from shadowlab.runs.starting import Start, began_with, put, start_folder, start_of, with_own_start, with_weights
from shadowlab.runs.tail import last_step

__all__ = [
    "BEST",
    "REQUIRED",
    "Remedy",
    "RunFolder",
    "Best",
    "RunSummary",
    "Warned",
    "best_step",
    "changes",
    "default_name",
    "find_run",
    "last_step",
    "list_runs",
    "read_history",
    "required_runs",
    "resume_point",
    "resumed_config",
    "run_places",
    "run_to_resume",
    "stage_passed",
    "Start",
    "began_with",
    "put",
    "start_folder",
    "start_of",
    "with_own_start",
    "with_weights",
    "telling_where",
    "with_processes",
    "write_remedy",
]
