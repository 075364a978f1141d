"""What a task gives for judging its models at length: metrics, tracks, baselines, measures without truth.

Legend: B batch, C channels, H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from shadowlab.charts import Metric
from shadowlab.data import SampleSet

B = TypeVar("B")
TRUTH = "truth"
"""The method whose predictions are the right pictures: what every metric says of perfection."""


@dataclass(frozen=True, eq=False)
class Tracks:
    """The parts of a data set that are judged apart."""

    names: tuple[str, ...]
    """In the order in which they are shown."""
    of: Sequence[int]
    """Of each sample, in the order of the data set, the number of its track among `names`."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """How several predictions of one sample become one."""

    text: str
    """For people: `median`."""
    reduce: Callable[[Tensor], Tensor]
    """(S, C, H, W) of S seeds, in [0, 1] -> (C, H, W)."""


class Evaluation(Protocol[B]):
    """How samples of a task are judged, next to what `Task` says of itself.

    It may also have `ensemble`, an `Ensemble`: then a model of several seeds is judged by what they make together, too.
    """

    metrics: tuple[Metric, ...]
    """Names are keys of `judge`; the order is that of tables."""
    ranking: str
    """The metric by which best, median and worst samples are chosen."""
    drawn: tuple[str, ...]
    """Metrics that are drawn over the number of steps."""
    baselines: Mapping[str, Callable[[B], Tensor]]
    """Name for people (`all black`) -> batch to pictures (B, C, H, W) float32 in [0, 1], on the CPU."""
    settings: Mapping[str, Any]
    """JSON of what else decides the numbers, such as parameters of a baseline."""
    control_texts: Mapping[str, str]
    """What `control` measures, by name, for people; empty where it measures nothing."""
    notes: tuple[str, ...]
    """What has to be known to read the numbers, one sentence each."""

    def tracks(self, data: SampleSet[Any]) -> Tracks:
        """Raises UserError where a track that the data set must have is missing."""

    def judge(self, prediction: Tensor, batch: B) -> dict[str, Tensor]:
        """prediction (B, C, H, W) in [0, 1], on the CPU as the batch -> metric -> (B,)."""

    def control(self, batch: B, draw: Callable[[B], Tensor]) -> dict[str, float]:
        """Measures that need no truth, of one sample: does the picture obey its conditions? Those that cannot be
        taken of it are left out.

        Args:
            batch: the sample alone.
            draw: samples with any conditions to pictures (B, C, H, W), of the same noise each.
        """

    def published(self, data: SampleSet[Any], steps: int) -> dict[str, dict[str, float]]:
        """Track -> metric -> a figure from the literature for this very data set and number of steps; empty where
        there is none."""

    def remarks(self, data: SampleSet[Any]) -> list[str]:
        """What has to be known of these very samples, one sentence each. Raises UserError where one cannot be read."""

    def shown(self, batch: B) -> dict[str, Tensor]:
        """What a person needs to see of the first sample: name -> (3, H, W) in [0, 1]."""

    def caption(self, batch: B) -> str:
        """The first sample's conditions, for people."""
