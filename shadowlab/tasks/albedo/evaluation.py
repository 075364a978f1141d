"""How albedo models are judged at length: metrics in their colour spaces, baselines, and what could not be computed.

Legend: B batch, H W pixels.
"""

from array import array
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.charts import Metric
from shadowlab.data import SampleSet, one_line
from shadowlab.errors import UserError
from shadowlab.tasks.albedo import baselines, metrics
from shadowlab.tasks.albedo.ensemble import ensembled
from shadowlab.tasks.albedo.ordering import FOLDER, read_comparisons
from shadowlab.tasks.albedo.samples import AlbedoBatch, AlbedoSample
from shadowlab.tasks.colour import ColourSpace, converted
from shadowlab.tasks.evaluation import Ensemble, Tracks
from shadowlab.tasks.perceptual import lpips, missing_for_lpips


class AlbedoEvaluation:
    """An `Evaluation`.

    Args:
        space: that pictures of the batches are in.
        root: folder of the data set, where `comparisons/ID.json` may lie; None where it has none.
        notes: sentences that stand in every report: what the run's own options say of the data.
    """

    ranking = "psnr"
    drawn: tuple[str, ...] = ("psnr", "ssim", "rmse", "si_rmse")
    control_texts: Mapping[str, str] = {}
    ensemble = Ensemble("median", lambda predictions: ensembled(predictions, "median").prediction)
    """As `generate --ensemble` does it."""

    def __init__(self, space: ColourSpace, root: Path | None = None, notes: tuple[str, ...] = ()) -> None:
        self._space, self._own_notes = space, notes
        self._comparisons = {} if root is None else _found_comparisons(root)
        self.baselines: Mapping[str, Callable[[AlbedoBatch], Tensor]] = baselines.BASELINES
        self._whdr_missing = "the data set has no comparisons" if not self._comparisons else ""

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that can be computed of these data on this machine; `notes` has the reason of each other one."""
        more = [metrics.WHDR] if not self._whdr_missing else []
        return (*metrics.METRICS, *more, *([metrics.LPIPS] if self._lpips_missing is None else []))

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON of what else decides the numbers."""
        return {
            "space": self._space,
            "metrics": {one.name: metrics.SPACES[one.name] for one in self.metrics},
            "retinex": [baselines.CHROMATIC_EDGE, baselines.BRIGHT_EDGE, baselines.WHITE],
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known to read the numbers, one sentence each."""
        spaces: dict[str, list[str]] = {}
        for one in self.metrics:
            spaces.setdefault(metrics.SPACES[one.name], []).append(one.text)
        said = " and ".join(f"{', '.join(names)} in {space}" for space, names in spaces.items())
        better = ", ".join(f"{one.text} {'up' if one.higher_is_better else 'down'}" for one in self.metrics)
        found = [
            f"colour: data and predictions are in {self._space}; judged {said}, over valid pixels of each image",
            f"better: {better}",
        ]
        if self._whdr_missing:
            found.append(f"WHDR: not computed ({self._whdr_missing})")
        else:
            found.append("WHDR alone misleads: it asks for the order of brightness of a few points, not for colour")
        if self._lpips_missing is not None:
            found.append(f"LPIPS: not computed ({self._lpips_missing})")
        return (*self._own_notes, *found)

    def tracks(self, data: SampleSet[AlbedoSample]) -> Tracks:
        """One, `all`. Comparisons count where every sample has some: a mean over a few would pass for one over all."""
        lacking = [name for name in data.ids if name not in self._comparisons]
        if self._comparisons and lacking:
            self._whdr_missing = (
                f"{len(lacking)} of {len(data)} samples have no comparisons, first {one_line(lacking[0])}"
            )
            self.__dict__.pop("metrics", None)
        return Tracks(("all",), array("B", bytes(len(data))))

    def judge(self, prediction: Tensor, batch: AlbedoBatch) -> dict[str, Tensor]:
        """prediction (B, 3, H, W) in [0, 1], in the space of the batch -> each of `metrics`, (B,).

        Raises:
            UserError: the batch is in another space than this evaluation declares.
        """
        if batch.space != self._space:
            raise UserError(f"samples are in {batch.space}, judged as {self._space}; open both with one colour space")
        pair = metrics.Pair.of(
            prediction, batch.albedo.to(prediction.device), batch.valid.to(prediction.device), self._space
        )
        found = metrics.judged(pair)
        names = {one.name for one in self.metrics}
        if "whdr" in names:
            shown = zip(batch.ids, pair.prediction["linear"], strict=True)
            values = [read_comparisons(self._comparisons[name]).disagreement(picture) for name, picture in shown]
            found["whdr"] = torch.tensor(values, dtype=torch.float32)
        if "lpips" in names:
            found["lpips"] = lpips(pair.prediction["srgb"], pair.truth["srgb"], pair.valid)
        return found

    def control(self, batch: AlbedoBatch, draw: Callable[[AlbedoBatch], Tensor]) -> dict[str, float]:
        """Nothing is measured without truth."""
        return {}

    def published(self, data: SampleSet[AlbedoSample], steps: int) -> dict[str, dict[str, float]]:
        """Nothing: no published figure is of data that can be had here."""
        return {}

    def remarks(self, data: SampleSet[AlbedoSample]) -> list[str]:
        """Nothing is known of single samples."""
        return []

    def shown(self, batch: AlbedoBatch) -> dict[str, Tensor]:
        """The first sample's beauty, (3, H, W) in [0, 1], sRGB."""
        return {"beauty": converted(batch.beauty[0], batch.space, "srgb")}

    def caption(self, batch: AlbedoBatch) -> str:
        """The first sample's object."""
        return f"object {one_line(batch.objects[0])}"

    @cached_property
    def _lpips_missing(self) -> str | None:
        return missing_for_lpips()


def _found_comparisons(root: Path) -> dict[str, Path]:
    """Sample id -> its file."""
    folder = root / FOLDER
    return {file.stem: file for file in sorted(folder.glob("*.json"))} if folder.is_dir() else {}
