"""How shadow models are judged at length: the benchmark's tracks and metrics, baselines, control without truth.

Legend: B batch, H W pixels. Light = (theta degrees, phi degrees, size scene units).
"""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shadowlab.charts import Metric
from shadowlab.data import SampleSet, one_line
from shadowlab.errors import UserError
from shadowlab.metrics import soft_iou
from shadowlab.tasks.evaluation import Tracks
from shadowlab.tasks.shadow.baselines import BASELINES, Baseline
from shadowlab.tasks.shadow.benchmark import NUM_SAMPLES
from shadowlab.tasks.shadow.control import measure_control
from shadowlab.tasks.shadow.folder import FolderDataset
from shadowlab.tasks.shadow.light import Light
from shadowlab.tasks.shadow.metrics import per_image_metrics
from shadowlab.tasks.shadow.samples import Batch, Sample
from shadowlab.tasks.shadow.view import ViewFit

HAZE = 0.02
"""Values below it are dropped, in prediction and truth, before `soft_iou_without_haze`: fainter than anybody sees."""
METRICS = (
    Metric("soft_iou", "soft IoU"),
    Metric("soft_iou_without_haze", "soft IoU without haze"),
    Metric("rmse", "RMSE", higher_is_better=False, form=".4f"),
    Metric("si_rmse", "s-RMSE", higher_is_better=False, form=".4f"),
    Metric("zncc", "ZNCC"),
    Metric("psnr", "PSNR", form=".2f"),
    Metric("ssim", "SSIM"),
)
TRACKS = {
    "softness_control": (50, 150),
    "horizontal_direction_control": (15, 270),
    "vertical_direction_control": (15, 135),
}
"""Of the benchmark: objects and images."""
NAMES = ("soft_iou", "rmse", "si_rmse", "zncc")
PUBLISHED: Mapping[int, Mapping[str, tuple[float, ...]]] = {
    1: {
        "softness_control": (0.768, 0.020, 0.019, 0.982),
        "horizontal_direction_control": (0.732, 0.027, 0.026, 0.968),
        "vertical_direction_control": (0.736, 0.026, 0.025, 0.971),
    },
    20: {
        "softness_control": (0.818, 0.021, 0.020, 0.979),
        "horizontal_direction_control": (0.780, 0.030, 0.028, 0.958),
        "vertical_direction_control": (0.776, 0.028, 0.027, 0.960),
    },
}
"""Steps -> track -> `NAMES`, rectified flow after 150k iterations, mean of 10 seeds (Tasar et al., arXiv 2412.11972,
table 2)."""
_NOTES = (
    "haze decides the plain soft IoU: a faint veil over the whole picture costs more of it than a wrong shadow. Never "
    "choose a checkpoint or a number of steps by it alone; without haze, values below "
    f"{HAZE:g} count as 0, in truth and prediction",
    "an all black prediction has a small RMSE, too, where shadows are small: a low one alone proves nothing",
)


class ShadowEvaluation:
    """An `Evaluation`. fit: camera of the baselines and of the control measures, and what it was fitted on."""

    metrics: tuple[Metric, ...] = METRICS
    ranking = "soft_iou_without_haze"
    drawn: tuple[str, ...] = ("soft_iou", "soft_iou_without_haze", "rmse", "zncc")
    control_texts: Mapping[str, str] = {
        "direction_error": "direction error in degrees (0 is right, 90 is chance)",
        "turning_error": "direction error between phi and phi + 180, in degrees",
        "length_monotone": "longer with theta, share of steps",
        "length_rank": "longer with theta, rank correlation",
        "penumbra_monotone": "softer with size, share of steps",
        "penumbra_rank": "softer with size, rank correlation",
        "change_on_turn": "change when phi turns by 180 (0: none)",
    }
    notes: tuple[str, ...] = _NOTES

    def __init__(self, fit: ViewFit) -> None:
        self._fit, self._view = fit, fit.view
        self.baselines: Mapping[str, Callable[[Batch], Tensor]] = {
            name: self._of_batch(predict) for name, predict in BASELINES.items()
        }
        self.settings: Mapping[str, Any] = {"view": asdict(fit.view)}

    def tracks(self, data: SampleSet[Sample]) -> Tracks:
        """Those of the benchmark, of its tars and packs of them; of a folder one, `all`."""
        numbers = {name: number for number, name in enumerate(TRACKS)}
        named = [] if isinstance(data, FolderDataset) else [data.entry(i).track for i in range(len(data))]
        if not named or not any(name in numbers for name in named):
            return Tracks(("all",), array("B", bytes(len(data))))
        missing = [name for name in numbers if name not in named]
        if missing or None in named:
            lacking = f"no sample of the track {missing[0]}" if missing else "a sample without a track"
            raise UserError(
                f"{one_line(data.name)}: {lacking}; the benchmark has {', '.join(numbers)}: fetch the tar again, or "
                "judge on a folder, which is one track"
            )
        return Tracks(tuple(numbers), array("B", [numbers[name] for name in named if name is not None]))

    def judge(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """prediction (B, 1, H, W) in [0, 1] -> each of `METRICS`, (B,)."""
        kept = [torch.where(one < HAZE, 0.0, one) for one in (prediction.float(), batch.shadow)]
        return {**per_image_metrics(prediction, batch.shadow), "soft_iou_without_haze": soft_iou(*kept)}

    def published(self, data: SampleSet[Sample], steps: int) -> dict[str, dict[str, float]]:
        """The paper's, for all 555 images of its benchmark and its numbers of steps alone."""
        if steps not in PUBLISHED or len(data) != NUM_SAMPLES or isinstance(data, FolderDataset):
            return {}
        counted = Counter(data.entry(i).track for i in range(len(data)))
        if counted != {name: num_images for name, (_, num_images) in TRACKS.items()}:
            return {}
        return {track: dict(zip(NAMES, row, strict=True)) for track, row in PUBLISHED[steps].items()}

    def control(self, batch: Batch, draw: Callable[[Batch], Tensor]) -> dict[str, float]:
        """The fields of `Control` that could be measured of the one object of the batch; 25 pictures are drawn."""

        def under(light: Light) -> np.ndarray:
            changed = replace(batch, light=torch.tensor([light], dtype=torch.float32))
            return draw(changed)[0, 0].numpy()

        measured = measure_control(under, batch.mask[0, 0].numpy(), self._view)
        found = {name: getattr(measured, name) for name in self.control_texts}
        return {name: value for name, value in found.items() if value is not None}

    def remarks(self, data: SampleSet[Sample]) -> list[str]:
        """Whether the camera was fitted on objects that are judged."""
        seen = len(self._fit.seen_objects(data))
        if not seen:
            return []
        objects = f"{seen} of the {len(set(data.object_ids))} objects"
        return [f"the baselines' camera was fitted on {objects} that are judged: their figures flatter them"]

    def shown(self, batch: Batch) -> dict[str, Tensor]:
        return {"object": (batch.object_image[0] + 1) / 2}

    def caption(self, batch: Batch) -> str:
        theta, phi, size = (f"{value:g}" for value in batch.light[0].tolist())
        return f"theta {theta}, phi {phi}, size {size}"

    def _of_batch(self, predict: Baseline) -> Callable[[Batch], Tensor]:
        def of_batch(batch: Batch) -> Tensor:
            maps = [
                predict(mask.numpy(), theta, phi, size, self._view)
                for mask, (theta, phi, size) in zip(batch.mask[:, 0], batch.light.tolist(), strict=True)
            ]
            return torch.from_numpy(np.stack(maps))[:, None]

        return of_batch
