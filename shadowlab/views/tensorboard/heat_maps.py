"""Heat maps of a run, drawn again as it grows: see `LAYER_MAPS`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from diagnostics.board import MEANT_HEADROOM_BITS, block_of
from diagnostics.records import LayerTable
from shadowlab.views.charts import LAYER_MAPS
from shadowlab.views.layer_map import LayerColumns
from shadowlab.views.tensorboard.layer_picture import MAX_NAMED_ROWS, colour_ends, draw_heat_map

GROUP = "00 run, heat map of "  # the blocks' groups begin with 01
_FIRST = 4  # measured steps; then whenever their number has doubled
_PAGES = 8  # pages are drawn when it has grown by this factor


@dataclass(frozen=True)
class Page:
    """A picture and its place."""

    tag: str
    """`00 run, heat map of gradient_norm/02 down_blocks.1 to down_blocks.2`."""
    picture: Image.Image


class HeatMaps:
    """Fed with the records of a run, says when its pictures are due and draws them.

    Drawn when the number of measured steps has doubled and when a session ends; pages more seldom. So the bytes grow as
    the logarithm of the steps: 1,000 of 878 layers are at most 7 MB, as noise (`shadowlab bench views`).

    Up to 72 layers are one picture with a name at every row. More are an overview, whose rows are thinner and whose
    blocks are named, and pages of 72 rows with their names: a picture of 800 named rows would be 10,000 pixels high,
    which TensorBoard shrinks to the width of a card, or shows with two rows in sight.
    """

    def __init__(self) -> None:
        self._columns = {one: LayerColumns(one) for one in LAYER_MAPS}
        self._num_measured = 0
        self._drawn_at = self._pages_at = 0
        self._step = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """A record of the run, as it was written."""
        layers = record.get("layers")
        if not layers or "step" not in record:
            return
        self._num_measured += 1
        self._step = record["step"]
        for columns in self._columns.values():
            columns.add(self._step, layers)

    @property
    def step(self) -> int:
        """Of the last record that measured layers."""
        return self._step

    @property
    def are_due(self) -> bool:
        return self._num_measured >= _FIRST and self._num_measured >= 2 * self._drawn_at

    @property
    def are_stale(self) -> bool:
        """Whether a step came since they, or the pages where there are some, were drawn."""
        has_pages = any(columns.num_layers > MAX_NAMED_ROWS for columns in self._columns.values())
        return self._num_measured > (self._pages_at if has_pages else self._drawn_at)

    def skip(self, *, last: bool = False) -> bool:
        """As if drawn now: earlier event files hold them. Returns whether pages are due, too."""
        with_pages = last or self._num_measured >= _PAGES * self._pages_at
        self._drawn_at = self._num_measured
        if with_pages:
            self._pages_at = self._num_measured
        return with_pages

    def draw(self, *, last: bool = False) -> Iterator[Page]:
        """last: the session ends, so that pages are drawn in any case, and alone where the overview is of this step."""
        with_overview = not last or self._num_measured > self._drawn_at
        with_pages = self.skip(last=last)
        for scale, columns in self._columns.items():
            table, group = columns.table(), f"{GROUP}{scale.key}"
            if scale.statistic == "headroom_bits" and not _is_low(table):
                continue
            if len(table.names) <= MAX_NAMED_ROWS:
                yield Page(f"{group}/all layers", draw_heat_map(table, scale))
                continue
            if with_overview:
                yield Page(f"{group}/00 all layers", draw_heat_map(table, scale, named=False))
            if not with_pages:
                continue
            ends = colour_ends(table, scale)  # one for all pages, so that they compare
            num_pages = -(-len(table.names) // MAX_NAMED_ROWS)
            for number in range(num_pages):
                rows = slice(number * len(table.names) // num_pages, (number + 1) * len(table.names) // num_pages)
                names = table.names[rows]
                part = LayerTable(names, table.steps, table.values[rows], table.present[rows])
                blocks = dict.fromkeys((block_of(names[0]), block_of(names[-1])))
                tag = f"{group}/{number + 1:02d} {' to '.join(blocks)}"
                yield Page(tag, draw_heat_map(part, scale, ends=ends))


def _is_low(table: LayerTable) -> bool:
    """Whether any headroom says something: below that of the least number of float16, or not finite."""
    values = table.values[table.present]
    return bool((~(values > MEANT_HEADROOM_BITS)).any())
