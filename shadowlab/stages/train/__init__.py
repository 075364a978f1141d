"""train: the run itself."""

from shadowlab.stages.train.train import run_train

__all__ = [
    "run_train",
]
