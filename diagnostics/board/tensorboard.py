"""TensorBoard's view of the records: scalars grouped by block, charts of blocks, histograms, words, pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diagnostics.board.layout import layout
from diagnostics.board.run_charts import RUN_CHARTS, RunChart
from diagnostics.board.selection import Drawn, Selection
from diagnostics.board.texts import text_of
from diagnostics.statistics import Histogram

_FLUSH_SECONDS = 10  # who watches a run live sees it this late; TensorBoard's own 120 is longer than many runs


class TensorBoardView:
    """Writes records to event files: one of the run itself, one in a folder below for each line of a chart.

    Tags: `00 run/Loss` for a chart of the run's own numbers, whose lines are sub-runs, each with a colour of its own
    (`board.run_charts`); `KIND/KEY` for every number of the run, in the run itself;
    `03 down_blocks.1/gradient_norm/resnets.0.conv1` for those of a layer or parameter,
    `03 down_blocks.1/block_update_ratio/median` for a block; see `board.tags`. `board.selection` says which are written
    when, and how many bytes that are at most in a run of any length. Histograms go by their own names; records of the
    kinds `incident`, `health` and `stage` are text. The charts of the Custom Scalars page are laid out with the first
    record that has layers.

    Args:
        folder: made if missing; every view adds event files of its own.
        purge_step: on resume, the first step to be written again: what earlier files hold from there on is hidden.
        in_full: names of layers and parameters of which every statistic of every record is drawn, beyond the bound.
        charts: of the run's own numbers; by default those of a loop with records of the kinds `train` and `validation`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        purge_step: int | None = None,
        in_full: Callable[[str], bool] = lambda name: False,
        charts: Sequence[RunChart] = RUN_CHARTS,
    ) -> None:
        self._folder, self._purge_step = folder, purge_step
        self._selection = Selection(in_full, charts)
        self._is_resuming = False
        self._laid_out: dict[str, Any] = {}
        self._writers: dict[str, Any] = {}  # sub-run -> its writer, which has a thread
        self._writer = self._open("")

    @property
    def charts(self) -> Sequence[RunChart]:
        """Of the run's own numbers; may be exchanged at any time."""
        return self._selection.charts

    @charts.setter
    def charts(self, charts: Sequence[RunChart]) -> None:
        self._selection.charts = charts

    def remember(self, record: Mapping[str, Any]) -> None:
        """Learn from a record that earlier event files show; on resume, before the first `write`. So blocks keep their
        numbers, and the bound on the size holds over the whole run."""
        self._selection.take(record)
        self._is_resuming = True

    def write(self, record: Mapping[str, Any]) -> None:
        """Show one record, as written to or read from the JSON lines. Records without a `step` are not shown."""
        self._begin()
        has_histograms = self._add_all(self._selection.take(record))
        if "step" not in record:
            return
        self._lay_out()
        for name, content in record.get("histograms", {}).items() if has_histograms else ():
            self._add_histogram(name, Histogram(**content), record["step"])
        text = text_of(record)
        self._selection.words.pour()
        if text is not None and self._selection.words.take(len(text[1].encode())):
            self._writer.add_text(*text, record["step"])

    def _lay_out(self) -> None:
        selection = self._selection
        if not selection.blocks.groups:
            return
        charts = layout(selection.blocks, selection.charts, shows_headroom=selection.shows_headroom)
        if charts != self._laid_out and selection.words.take(len(str(charts).encode())):
            self._laid_out = charts
            self._writer.add_custom_scalars(charts)

    @property
    def num_dumps(self) -> int:
        """Measured steps of which every layer was written, earlier files' included."""
        return self._selection.num_dumps

    @property
    def num_bytes(self) -> int:
        """Of scalars, histograms and text that the records ask for, earlier files' included."""
        return self._selection.spent

    def add_image(self, tag: str, image: Tensor, step: int) -> None:
        """Show a picture, (3, H, W) in [0, 1]."""
        self._writer.add_image(tag, image, step)

    def add_png(self, tag: str, png: bytes, size: tuple[int, int], step: int) -> None:
        """Show an encoded picture as it is. size: width, height in pixels."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Dump the last measured step, if it was not, and close the file."""
        self._begin()
        try:
            self._add_all(self._selection.finish())
        finally:
            for writer in self._writers.values():
                writer.close()

    def _begin(self) -> None:
        """What was remembered is over: its last step was dumped when that session closed."""
        if self._is_resuming:
            self._selection.finish()
            self._is_resuming = False

    def _add_all(self, parts: Iterable[Drawn]) -> bool:
        """Returns whether the histograms of the record are drawn, too."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        has_histograms = False
        for drawn in parts:
            has_histograms |= drawn.has_histograms
            if not drawn.entries:
                continue
            # One event for all numbers: with a thousand layers an event each would take half a second.
            summary = Summary.FromString(b"".join(drawn.entries))
            self._open(drawn.run).file_writer.add_summary(summary, drawn.step)
        return has_histograms

    def _open(self, run: str) -> Any:
        """The writer of a sub-run, made when it is first needed."""
        from torch.utils.tensorboard import SummaryWriter

        if run not in self._writers:
            self._writers[run] = SummaryWriter(
                str(self._folder / run), purge_step=self._purge_step, flush_secs=_FLUSH_SECONDS
            )
        return self._writers[run]

    def _add_histogram(self, name: str, content: Histogram, step: int) -> None:
        # add_histogram raises on NaN (pytorch#31855): the finite part is drawn, the rest is a scalar next to it.
        if not content.counts:
            return
        num_bins = len(content.counts)

        def at(fraction: float) -> float:  # the range itself may exceed float64
            return content.low * (1 - fraction) + content.high * fraction

        centres = [at((i + 0.5) / num_bins) for i in range(num_bins)]
        self._writer.add_histogram_raw(
            name,
            min=content.low,
            max=content.high,
            num=sum(content.counts),
            sum=sum(c * n for c, n in zip(centres, content.counts, strict=True)),
            sum_squares=sum(c * c * n for c, n in zip(centres, content.counts, strict=True)),
            bucket_limits=[at((i + 1) / num_bins) for i in range(num_bins)],
            bucket_counts=content.counts,
            global_step=step,
        )


def rebuild(
    records: Iterable[Mapping[str, Any]], folder: Path, *, in_full: Callable[[str], bool] = lambda name: False
) -> None:
    """Rebuild the view of a run from its records: the same scalars, charts, histograms and text, no pictures.

    Raises:
        FileExistsError: the folder holds event files; a second copy of every curve would be drawn over the first.
    """
    if any(folder.glob("events.out.tfevents.*")):
        raise FileExistsError(f"{folder} holds a TensorBoard view already; name an empty folder or remove its files")
    view = TensorBoardView(folder, in_full=in_full)
    try:
        for record in records:
            view.write(record)
    finally:
        view.close()
