"""Records drawn in TensorBoard: which tags, in which order, with which texts."""

from diagnostics.board.tags import block_of
from diagnostics.board.tensorboard import TensorBoardView, rebuild

__all__ = [
    "TensorBoardView",
    "block_of",
    "rebuild",
]
