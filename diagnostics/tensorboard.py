"""TensorBoard's view of the records: scalars grouped by block, histograms, pictures."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diagnostics.parameters import Histogram
from diagnostics.records import rounded

_FLOAT32_MAX = 3.4028234663852886e38


def block_of(name: str) -> str:
    """The block a module or parameter belongs to: `down_blocks.1.resnets.0.conv1` -> `down_blocks.1`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of every number in a record, NaN and Inf included; None has no value and is left out.

    KIND/KEY                              numbers of the record itself; KIND is its `kind`, or `train`
    BLOCK/activation_STATISTIC/MODULE     `layers`: norm, mean, std, max_abs, fraction_zero, num_nonfinite
    BLOCK/gradient_STATISTIC/MODULE       likewise, of the gradient by the module's output; where none arrives in a
                                          record that has gradients, norm alone, drawn as 0: the module is cut off
    BLOCK/parameter_gradient_norm/NAME    `parameters`
    BLOCK/update_ratio/NAME               `parameters`
    nonfinite/NAME                        `histograms`: how many values are NaN or Inf and so in no bin
    """
    kind = record.get("kind", "train")
    for key, value in record.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "step":
            yield f"{kind}/{key}", value
    layers = record.get("layers", {})
    has_gradients = any("gradient" in parts for parts in layers.values())
    for name, parts in layers.items():
        block = block_of(name)
        if has_gradients and "gradient" not in parts:
            yield f"{block}/gradient_norm/{name}", 0.0
        for part, statistics in parts.items():
            for statistic, value in statistics.items():
                if statistic == "headroom_bits" and value == math.inf:  # all is zero
                    continue
                yield f"{block}/{part}_{statistic}/{name}", value
    for name, values in record.get("parameters", {}).items():
        for key, tag in (("gradient_norm", "parameter_gradient_norm"), ("update_ratio", "update_ratio")):
            if values.get(key) is not None:
                yield f"{block_of(name)}/{tag}/{name}", values[key]
    for name, content in record.get("histograms", {}).items():
        yield f"nonfinite/{name}", content["num_nan"] + content["num_inf"]


class TensorBoardView:
    """Writes records to an event file; `scalars` lists the tags, histograms go by their own names.

    Args:
        folder: made if missing; every view adds an event file of its own.
        purge_step: on resume, the first step to be written again: what earlier files hold from there on is hidden.

    The numbers of a record are one event: with a thousand layers an event each would take half a second.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Show one record, as written to or read from the JSON lines. Records without a `step` are not shown."""
        if "step" not in record:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        values = [Summary.Value(tag=tag, simple_value=_drawn(value)) for tag, value in scalars(record)]
        if values:
            self._writer.file_writer.add_summary(Summary(value=values), record["step"])
        for name, content in record.get("histograms", {}).items():
            self._add_histogram(name, Histogram(**content), record["step"])

    def add_image(self, tag: str, image: Tensor, step: int) -> None:
        """`image`: (3, H, W) in [0, 1]."""
        self._writer.add_image(tag, image, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add_histogram(self, name: str, content: Histogram, step: int) -> None:
        # add_histogram raises on NaN (pytorch#31855): the finite part is drawn, the rest is a scalar beside it.
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


def rebuild(records: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write the view of a run anew from its records: the same scalars and histograms, no pictures.

    Raises:
        FileExistsError: the folder holds event files; a second copy of every curve would be drawn over the first.
    """
    if any(folder.glob("events.out.tfevents.*")):
        raise FileExistsError(f"{folder} holds a TensorBoard view already; name an empty folder or remove its files")
    view = TensorBoardView(folder)
    try:
        for record in records:
            view.write(record)
    finally:
        view.close()


def _drawn(value: float) -> float:
    """The value as records keep it, so that a rebuilt view is the same, and within TensorBoard's float32: a finite
    value beyond it is drawn at its limit."""
    if not math.isfinite(value):
        return value
    return max(-_FLOAT32_MAX, min(_FLOAT32_MAX, rounded(float(value))))
