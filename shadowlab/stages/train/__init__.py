"""train: the command as a whole, and the run itself. Importing it loads only what a launcher of processes needs."""

from shadowlab.stages.train.orchestration import run_train, start_training

__all__ = [
    "run_train",
    "start_training",
]
