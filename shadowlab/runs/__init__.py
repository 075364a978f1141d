"""Run folders: what is in one, how it is found and resumed."""

from shadowlab.runs.folder import (
    LOCK,
    RunFolder,
    default_name,
    find_run,
    latest_training_run,
    read_history,
    run_places,
    stage_passed,
    telling_where,
)
from shadowlab.runs.resume import changes, resumed_config, with_processes

__all__ = [
    "LOCK",
    "RunFolder",
    "changes",
    "default_name",
    "find_run",
    "latest_training_run",
    "read_history",
    "resumed_config",
    "run_places",
    "stage_passed",
    "telling_where",
    "with_processes",
]
