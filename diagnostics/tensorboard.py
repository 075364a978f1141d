"""TensorBoard's view of the records: scalars grouped by block, histograms, pictures."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from diagnostics.parameters import Histogram


def block_of(name: str) -> str:
    """The block a module or parameter belongs to: `down_blocks.1.resnets.0.conv1` -> `down_blocks.1`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


class TensorBoardView:
    """Writes records to an event file. Steps after `purge_step - 1` of an earlier file are hidden on resume.

    Tags: every scalar of a record under its own name (`train/loss`); per layer
    `BLOCK/activation_norm/NAME`, `BLOCK/gradient_norm/NAME` and the other statistics alike; per parameter
    `BLOCK/parameter_gradient_norm/NAME` and `BLOCK/update_ratio/NAME`.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, record: dict[str, Any]) -> None:
        """Show one record. Keys `layers`, `parameters` and `histograms` are understood, numbers are scalars."""
        step = record["step"]
        prefix = record.get("kind", "train")
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "step":
                self._writer.add_scalar(f"{prefix}/{key}", value, step)
        for name, kinds in record.get("layers", {}).items():
            for kind, statistics in kinds.items():
                for statistic, value in statistics.items():
                    self._writer.add_scalar(f"{block_of(name)}/{kind}_{statistic}/{name}", value, step)
        for name, values in record.get("parameters", {}).items():
            for key, tag in (("gradient_norm", "parameter_gradient_norm"), ("update_ratio", "update_ratio")):
                if values[key] is not None:
                    self._writer.add_scalar(f"{block_of(name)}/{tag}/{name}", values[key], step)
        for name, content in record.get("histograms", {}).items():
            self._add_histogram(name, Histogram(**content), step)

    def add_image(self, tag: str, image: Tensor, step: int) -> None:
        """`image`: (3, H, W) in [0, 1]."""
        self._writer.add_image(tag, image, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add_histogram(self, name: str, content: Histogram, step: int) -> None:
        # add_histogram raises on NaN (pytorch#31855): the finite part is drawn, the rest is a count beside it.
        self._writer.add_scalar(f"nonfinite/{name}", content.num_nan + content.num_inf, step)
        if not content.counts:
            return
        num_bins = len(content.counts)
        width = (content.high - content.low) / num_bins
        centres = [content.low + width * (i + 0.5) for i in range(num_bins)]
        limits = [content.low + width * (i + 1) for i in range(num_bins)]
        if not math.isfinite(width):
            return  # the range exceeds float64; the count above still stands
        self._writer.add_histogram_raw(
            name,
            min=content.low,
            max=content.high,
            num=sum(content.counts),
            sum=sum(c * n for c, n in zip(centres, content.counts, strict=True)),
            sum_squares=sum(c * c * n for c, n in zip(centres, content.counts, strict=True)),
            bucket_limits=limits,
            bucket_counts=content.counts,
            global_step=step,
        )


def histogram_record(content: Histogram) -> dict[str, Any]:
    """The JSON form of a histogram, as `TensorBoardView.write` reads it back."""
    return asdict(content)
