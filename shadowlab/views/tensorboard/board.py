"""A run in TensorBoard: what `diagnostics` shows of its records, heat maps of them, and pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diagnostics.board import TensorBoardView
from diagnostics.records import Kinds
from shadowlab.charts import Chart
from shadowlab.views.charts import charts_in, number_keys, plots
from shadowlab.views.tensorboard.heat_maps import HeatMaps
from shadowlab.views.tensorboard.layer_picture import to_png


class Board:
    """Writes a run's records and pictures to TensorBoard's event files: a sink of a stage.

    Args:
        folder: made if missing; every board adds an event file of its own.
        resumed_at: steps that were done before; what earlier files hold of later ones is hidden. None: nothing is.
        in_full: names of layers and parameters of which every statistic of every record is drawn, beyond the bound.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resumed_at: int | None = None,
        in_full: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self._heat_maps = HeatMaps()
        self._kinds, self._kind = Kinds(), "train"
        self._charts: tuple[Chart, ...] | None = None
        self._judged: dict[str, list[str]] = {}  # kind of evaluations -> keys
        purge_step = None if resumed_at is None else resumed_at + 1
        self._view = TensorBoardView(folder, purge_step=purge_step, in_full=in_full, run_charts={})

    def remember(self, record: Mapping[str, Any]) -> None:
        """On resume, before the first `write`: a record that earlier event files show."""
        self._learn_charts(record)
        self._view.remember(record)
        self._heat_maps.add(record)
        self._heat_maps.skip(last=True)  # when that session was closed

    def write(self, record: Mapping[str, Any]) -> None:
        """One record, as metrics.jsonl has it.

        Raises:
            ValueError: a header whose charts are none.
        """
        self._learn_charts(record)
        self._view.write(record)
        self._heat_maps.add(record)
        if self._heat_maps.are_due:
            self._draw()

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """(3, H, W) in [0, 1]; to be seen at once."""
        self._view.add_image(tag, picture, step)
        self.flush()

    def flush(self) -> None:
        self._view.flush()

    def png(self, tag: str, content: bytes, size: tuple[int, int], step: int) -> None:
        """An encoded picture. size: width, height in pixels."""
        self._view.add_png(tag, content, size, step)

    @property
    def num_dumps(self) -> int:
        """Measured steps of which every layer was written."""
        return self._view.num_dumps

    def close(self) -> None:
        """Draw what is new and close the file."""
        try:
            if self._heat_maps.are_stale:
                self._draw(last=True)
        finally:
            self._view.close()

    def _learn_charts(self, record: Mapping[str, Any]) -> None:
        """What is drawn may change with a header and with what evaluations measure."""
        kind = self._kinds.learn(record)
        if kind == "header":
            self._kind, self._charts = str(record.get("stage", self._kind)), charts_in(record)
        elif self._kinds.is_evaluation(kind):
            self._judged[kind] = list(dict.fromkeys((*self._judged.get(kind, ()), *number_keys(record))))
        elif self._view.run_charts:
            return
        found = plots(self._kind, self._charts, self._judged)
        self._view.run_charts = {plot.title: [line.pattern for line in plot.lines] for plot in found}

    def _draw(self, *, last: bool = False) -> None:
        for page in self._heat_maps.draw(last=last):
            self.png(page.tag, to_png(page.picture), page.picture.size, self._heat_maps.step)
