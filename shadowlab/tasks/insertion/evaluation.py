"""How insertion models are judged at length: metrics inside the mask and over all, baselines, what was not computed.

Legend: B batch, H W pixels.
"""

from array import array
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from shadowlab.charts import Metric
from shadowlab.data import SampleSet, one_line
from shadowlab.tasks.evaluation import Tracks
from shadowlab.tasks.insertion import baselines, metrics
from shadowlab.tasks.insertion.figures import given_picture
from shadowlab.tasks.insertion.samples import InsertionBatch, InsertionSample
from shadowlab.tasks.perceptual import lpips, missing_for_lpips


class InsertionEvaluation:
    """An `Evaluation`.

    Args:
        notes: sentences that stand in every report: what the run's own options say of the data.
    """

    ranking = "psnr_inside"
    drawn: tuple[str, ...] = ("psnr_inside", "ssim_inside", "rmse_inside", "psnr")
    control_texts: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {"mask": "metrics `inside` are over the mask, all others over the composited picture"}

    def __init__(self, notes: tuple[str, ...] = ()) -> None:
        self._own_notes = notes
        self.baselines: Mapping[str, Callable[[InsertionBatch], Tensor]] = baselines.BASELINES

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that can be computed on this machine; `notes` has the reason of each other one."""
        return (*metrics.METRICS, *([metrics.LPIPS] if self._lpips_missing is None else []))

    @property
    def notes(self) -> tuple[str, ...]:
        found = [
            "pictures are composited: outside the mask every pixel is the given one's, so that metrics over all pixels "
            "say nothing of it and depend on the mask's size; compare models inside"
        ]
        if self._lpips_missing is not None:
            found.append(f"LPIPS: not computed ({self._lpips_missing})")
        return (*self._own_notes, *found)

    def tracks(self, data: SampleSet[InsertionSample]) -> Tracks:
        """One, `all`."""
        return Tracks(("all",), array("B", bytes(len(data))))

    def judge(self, prediction: Tensor, batch: InsertionBatch) -> dict[str, Tensor]:
        """prediction (B, 3, H, W) in [0, 1] -> each of `metrics`, (B,). LPIPS is of the mask: elsewhere the prediction
        is taken for right."""
        target, mask = batch.target.to(prediction.device), batch.mask.to(prediction.device)
        found = metrics.per_image_metrics(prediction, target, mask)
        if self._lpips_missing is None:
            found["lpips"] = lpips(prediction, target, mask)
        return found

    def control(self, batch: InsertionBatch, draw: Callable[[InsertionBatch], Tensor]) -> dict[str, float]:
        """Nothing is measured without truth."""
        return {}

    def published(self, data: SampleSet[InsertionSample], steps: int) -> dict[str, dict[str, float]]:
        """Nothing: no published figure is of data that can be had here."""
        return {}

    def remarks(self, data: SampleSet[InsertionSample]) -> list[str]:
        """Nothing is known of single samples."""
        return []

    def shown(self, batch: InsertionBatch) -> dict[str, Tensor]:
        """What is given of the first sample, and its object, (3, H, W) in [0, 1]."""
        return {"given": given_picture(batch), "object": batch.object[0]}

    def caption(self, batch: InsertionBatch) -> str:
        """The first sample's object."""
        return f"object {one_line(batch.objects[0])}"

    @cached_property
    def _lpips_missing(self) -> str | None:
        return missing_for_lpips()
