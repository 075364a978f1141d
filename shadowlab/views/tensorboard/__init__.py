"""A run in TensorBoard: written while it trains, rebuilt from its records, served."""

from shadowlab.views.tensorboard.board import Board
from shadowlab.views.tensorboard.rebuild import opened_picture, saved_pictures
from shadowlab.views.tensorboard.serve import run_tensorboard

__all__ = [
    "Board",
    "opened_picture",
    "run_tensorboard",
    "saved_pictures",
]
