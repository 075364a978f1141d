"""How edits are judged at length: metrics and baselines of the edit, in the tracks that a list names.

Legend: B batch, H W pixels.
"""

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from shadowlab.charts import Metric
from shadowlab.data import SampleSet, one_line
from shadowlab.tasks.editing import baselines, metrics
from shadowlab.tasks.editing.edits import Edit
from shadowlab.tasks.editing.figures import input_picture
from shadowlab.tasks.editing.painting import EDGE, LEVELS, SMOOTHED
from shadowlab.tasks.editing.samples import EditingBatch, EditingSample
from shadowlab.tasks.editing.white_balance import CLIPPED
from shadowlab.tasks.evaluation import Ensemble, Tracks

_NOTES = {
    "white-balance": (
        "angular error: mean angle of pixels in linear light; Delta E 2000: CIE L*a*b* under D65, all files are sRGB",
        "grey-world and max-RGB leave green alone, as the gains of the data do",
    ),
    "object-removal": (
        "inside and outside the mask are judged apart: over the whole picture, copying the input would look good",
    ),
    "paint-to-image": (
        "many pictures belong to one painting: PSNR rewards the mean of them, edge agreement what has lines of its own",
    ),
}


class EditingEvaluation:
    """An `Evaluation`.

    Args:
        edit: that is judged.
        keep_input: as the option.
        notes: sentences that stand in every report: what the run's own options say of the data.
    """

    control_texts: Mapping[str, str] = {}
    ensemble = Ensemble("mean", lambda predictions: predictions.mean(dim=0))

    def __init__(self, edit: Edit, *, keep_input: bool, notes: tuple[str, ...] = ()) -> None:
        self._edit, self._keep = edit, keep_input
        self.metrics: tuple[Metric, ...] = metrics.METRICS[edit.name]
        self.ranking = metrics.RANKING[edit.name].name
        self.drawn: tuple[str, ...] = tuple(metric.name for metric in self.metrics)
        self.baselines: Mapping[str, Callable[[EditingBatch], Tensor]] = baselines.BASELINES[edit.name]
        kept = f"the result keeps {edit.keeps} (task_options.keep_input), also that of a baseline and of the truth"
        whole = "the result is what the model paints"
        self.notes = (*notes, *_NOTES[edit.name], kept if keep_input and edit.keeps else whole)

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON of what else decides the numbers."""
        known: dict[str, dict[str, Any]] = {
            "white-balance": {"clipped": CLIPPED},
            "paint-to-image": {"edges": [EDGE, LEVELS, SMOOTHED]},
        }
        return {"edit": self._edit.name, "keep_input": self._keep, **known.get(self._edit.name, {})}

    def tracks(self, data: SampleSet[EditingSample]) -> Tracks:
        """Those that the samples name; `all` of those that name none."""
        named = [data.entry(i).track or "all" for i in range(len(data))]
        names = tuple(dict.fromkeys(named))
        return Tracks(names, array("H", (names.index(name) for name in named)))

    def judge(self, prediction: Tensor, batch: EditingBatch) -> dict[str, Tensor]:
        """prediction (B, 3, H, W) in [0, 1] -> each of `metrics`, (B,)."""
        return metrics.judged(self._edit.name, prediction, batch.to(prediction.device), keep_input=self._keep)

    def control(self, batch: EditingBatch, draw: Callable[[EditingBatch], Tensor]) -> dict[str, float]:
        """Nothing is measured without truth."""
        return {}

    def published(self, data: SampleSet[EditingSample], steps: int) -> dict[str, dict[str, float]]:
        """Nothing: no published figure is of data that can be had here."""
        return {}

    def remarks(self, data: SampleSet[EditingSample]) -> list[str]:
        """Nothing is known of single samples."""
        return []

    def shown(self, batch: EditingBatch) -> dict[str, Tensor]:
        """The first sample's input, (3, H, W) in [0, 1]."""
        return {"input": input_picture(batch, self._edit)}

    def caption(self, batch: EditingBatch) -> str:
        """The first sample's object, and the gains that its input was made by."""
        named = f"object {one_line(batch.objects[0])}"
        gains = batch.gains[0]
        if not bool(torch.isfinite(gains).all()):
            return named
        return f"{named}, gains {', '.join(f'{float(gain):.2f}' for gain in gains)}"
