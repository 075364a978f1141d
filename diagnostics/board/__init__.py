"""Records drawn in TensorBoard: which tags, in which order, with which texts."""

from diagnostics.board.purse import Purse
from diagnostics.board.run_charts import ChartLine, RunChart
from diagnostics.board.selection import MEANT_HEADROOM_BITS, MOST_BYTES
from diagnostics.board.tags import BlockNumbers, block_numbers, block_of, run_numbers
from diagnostics.board.tensorboard import TensorBoardView, rebuild
from diagnostics.board.texts import text_of

__all__ = [
    "BlockNumbers",
    "ChartLine",
    "MEANT_HEADROOM_BITS",
    "MOST_BYTES",
    "Purse",
    "RunChart",
    "TensorBoardView",
    "block_numbers",
    "block_of",
    "rebuild",
    "run_numbers",
    "text_of",
]
