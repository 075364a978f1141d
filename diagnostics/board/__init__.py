"""Records drawn in TensorBoard: which tags, in which order, with which texts."""

from diagnostics.board.purse import Purse
from diagnostics.board.run_charts import ChartLine, RunChart
from diagnostics.board.selection import MEANT_HEADROOM_BITS, MOST_BYTES
from diagnostics.board.tags import block_of
from diagnostics.board.tensorboard import TensorBoardView, rebuild

__all__ = [
    "ChartLine",
    "MEANT_HEADROOM_BITS",
    "MOST_BYTES",
    "Purse",
    "RunChart",
    "TensorBoardView",
    "block_of",
    "rebuild",
]
