"""A run in TensorBoard: what `diagnostics` shows of its records, heat maps of them, and pictures.

Bound: event files of a run, sub-runs and pictures included, never hold more than MOST_BYTES, however long it is and
however often it is resumed. `diagnostics.board` bounds what the records ask for, the purse of this module the pictures;
where sessions that were cut off left more (their steps are written again by the next one), the oldest files go first.
`shadowlab tensorboard --rebuild` draws from metrics.jsonl and samples/ what is not there.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from diagnostics.board import MOST_BYTES as RECORD_BYTES
from diagnostics.board import ChartLine, Purse, RunChart, TensorBoardView
from diagnostics.records import Kinds
from shadowlab.charts import Chart
from shadowlab.drawing import to_image
from shadowlab.views.charts import Plot, charts_in, number_keys, plots
from shadowlab.views.tensorboard.heat_maps import HeatMaps
from shadowlab.views.tensorboard.layer_picture import to_png

PICTURES: dict[str, int] = {"credit": 16_000_000, "total": 84_000_000, "spread": 100_000, "debt": 16_000_000}
MOST_BYTES = RECORD_BYTES + Purse(**PICTURES).bound
"""256 MB."""
_MOST_PIXELS = 2_000_000  # of a picture, which samples/ has in full
_NAMES = {"validation": "validation", "fixed_grid": "fixed grid"}


class _Shown(NamedTuple):
    """An encoded picture, and where it goes."""

    tag: str
    content: bytes
    size: tuple[int, int]
    step: int


class Board:
    """Writes a run's records and pictures to TensorBoard's event files: a sink of a stage.

    Args:
        folder: made if missing; every board adds event files of its own.
        resumed_at: steps that were done before; what earlier files hold of later ones is hidden. None: nothing is.
        adds: a few records to a view that stays as it is: nothing is remembered.
        in_full: names of layers and parameters of which every statistic of every record is drawn, beyond the bound.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resumed_at: int | None = None,
        in_full: Callable[[str], bool] = lambda name: False,
        adds: bool = False,
    ) -> None:
        self._adds = adds
        self._heat_maps = HeatMaps()
        self._kinds, self._kind = Kinds(), "train"
        self._charts: tuple[Chart, ...] | None = None
        self._judged: dict[str, list[str]] = {}  # kind of evaluations -> keys
        purge_step = None if resumed_at is None else resumed_at + 1
        self._before = _event_files(folder)
        self._view = TensorBoardView(folder, purge_step=purge_step, in_full=in_full, charts=())
        self._pictures, self._has_begun = Purse(**PICTURES), False
        self._undrawn: dict[str, _Shown] = {}  # the last of each tag, where it was left out

    name = "TensorBoard"

    def remember(self, record: Mapping[str, Any]) -> None:
        """On resume, before the first `write`: a record that earlier event files show."""
        self._learn_charts(record)
        self._view.remember(record)
        self._pictures.pour()
        self._heat_maps.add(record)
        self._heat_maps.skip(last=True)  # when that session was closed

    def write(self, record: Mapping[str, Any]) -> None:
        """One record, as metrics.jsonl has it.

        Raises:
            ValueError: a header whose charts are none.
        """
        self._begin()
        self._learn_charts(record)
        self._view.write(record)
        self._pictures.pour()
        self._heat_maps.add(record)
        if self._heat_maps.are_due:
            self._draw()

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """(3, H, W) in [0, 1]; to be seen at once, see `add`."""
        self.add(tag, to_image(picture), step)
        self.flush()

    def add(self, tag: str, picture: Image.Image, step: int, content: bytes | None = None) -> None:
        """A picture of any size under `00 TAG`, next to the charts; one of more than 2 megapixels is shrunk.

        content: as PNG, where it is encoded already.
        """
        share = (_MOST_PIXELS / max(1, picture.width * picture.height)) ** 0.5
        if share < 1:
            size = (max(1, int(picture.width * share)), max(1, int(picture.height * share)))
            picture, content = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), None
        self.png(f"00 {tag}", content or to_png(picture), picture.size, step)

    def flush(self) -> None:
        self._view.flush()

    def png(self, tag: str, content: bytes, size: tuple[int, int], step: int, *, in_debt: bool = False) -> None:
        """An encoded picture; where there is no room for it now, it is shown at the end if it is still the last.

        size: width, height in pixels.
        """
        self._begin()
        if self._pictures.take(len(content), in_debt=in_debt):
            self._view.add_png(tag, content, size, step)
            self._undrawn.pop(tag, None)
        elif not in_debt:
            self._undrawn[tag] = _Shown(tag, content, size, step)

    @property
    def num_dumps(self) -> int:
        """Measured steps of which every layer was written."""
        return self._view.num_dumps

    @property
    def picture_bytes(self) -> int:
        """Of the pictures, with what earlier files hold beyond what their records ask for."""
        return self._pictures.spent

    def close(self) -> None:
        """Draw what is new and close the files."""
        self._begin()
        try:
            if self._heat_maps.are_stale:
                self._draw(last=True)
            for shown in list(self._undrawn.values()):
                self.png(*shown, in_debt=True)
        finally:
            self._view.close()

    def _begin(self) -> None:
        """What earlier files hold beyond what the remembered records ask for counts as pictures. More than all pictures
        may take are steps that were written several times: the oldest files go."""
        if self._has_begun:
            return
        self._has_begun = True
        if self._adds:
            return
        known = self._view.num_bytes
        while self._before and sum(self._before.values()) - known > self._pictures.bound:
            oldest = next(iter(self._before))
            oldest.unlink(missing_ok=True)
            del self._before[oldest]
        self._pictures.spend(max(0, sum(self._before.values()) - known))

    def _learn_charts(self, record: Mapping[str, Any]) -> None:
        """What is drawn may change with a header and with what evaluations measure."""
        kind = self._kinds.learn(record)
        if kind == "header":
            self._kind, self._charts = str(record.get("stage", self._kind)), charts_in(record)
        elif self._kinds.is_evaluation(kind):
            self._judged[kind] = list(dict.fromkeys((*self._judged.get(kind, ()), *number_keys(record))))
        elif self._view.charts:
            return
        found = plots(self._kind, self._charts, self._judged)
        self._view.charts = [self._run_chart(plot) for plot in found]

    def _run_chart(self, plot: Plot) -> RunChart:
        """Of training steps in `00 run`, of evaluations alone in a group of their own."""
        kind = plot.lines[0].kind
        group = f"00 {_NAMES.get(kind, kind)}" if self._kinds.is_evaluation(kind) else "00 run"
        return RunChart(group, plot.title, tuple(ChartLine(line.label, line.kind, line.key) for line in plot.lines))

    def _draw(self, *, last: bool = False) -> None:
        for page in self._heat_maps.draw(last=last):
            self.png(page.tag, to_png(page.picture), page.picture.size, self._heat_maps.step, in_debt=last)


def _event_files(folder: Path) -> dict[Path, int]:
    """Event files of a view and its sub-runs -> their bytes, the oldest first."""
    found = {file: file.stat() for file in folder.rglob("events.out.tfevents.*") if file.is_file()}
    return {file: status.st_size for file, status in sorted(found.items(), key=lambda one: one[1].st_mtime_ns)}
