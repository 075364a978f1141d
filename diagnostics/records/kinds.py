"""What a run's records say, kind by kind. `docs/records.md` is made from these types (`records.document`).

A record is a plain dictionary, one JSON object of metrics.jsonl, so reading 150,000 of them costs no conversion; its
type describes the keys. All keys but `kind` may be missing: older runs and loops of other people write fewer. Keys that
no type names are kept, and numbers among them are drawn; `OPEN_KEYS` says where they are expected.

Its kind says what a record is:

- `header`, `incident`, `health` and `stage` are words;
- a training step is of the kind `train`, or of one that a header announces as its `stage`, or has one of `STEP_KEYS`;
- every other kind is an evaluation.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypedDict, cast

Seconds = Annotated[float, "s"]
Gibibytes = Annotated[float, "GiB"]

WORDS = ("header", "incident", "health", "stage")  # kinds of records that are no numbers
STEP_KEYS = frozenset({"grad_norm", "learning_rate", "skipped", "layers", "parameters"})  # no evaluation has them
PARTS = ("activation", "gradient")  # what is measured of a layer
STATISTICS = ("norm", "mean", "std", "max_abs", "fraction_zero", "num_nonfinite", "headroom_bits")  # of each part


class Record(TypedDict, total=False):
    """What all kinds have."""

    kind: str
    """What the record is about; `train` where it is missing."""
    step: int
    """Optimizer steps done when it was written, from 1 in records of training steps. Headers have none."""


class ChartLine(TypedDict):
    """One line of a chart."""

    label: str
    """In the legend."""
    key: str
    """Of the evaluations' records."""


class ChartRecord(TypedDict):
    """Lines that share their axes."""

    title: str
    """Above the chart; `{samples}` stands for what was judged."""
    unit: str
    """Of its vertical axis, empty for pure numbers."""
    curves: list[ChartLine]
    """In the order of the legend."""


class MetricRecord(TypedDict):
    """What a number of the evaluations means."""

    name: str
    """Its key in the records."""
    text: str
    """For people."""
    higher_is_better: bool
    """Whether a larger value is the better one."""


class Header(Record, total=False):
    """What the records that follow are about. Each session of a run that is resumed writes one."""

    stage: str
    """The kind of the training steps that follow: `train`, or another name such as `overfit`."""
    num_samples: int
    """Samples that are trained on."""
    num_parameters: int
    """Elements of all parameters, frozen ones included."""
    augmentation: str
    """How training samples are changed, `flip 0.5`; missing where they are not."""
    precision: str
    """Name of the precision policy, such as `bf16`."""
    device: str
    """The GPU's name, or `CPU`."""
    charts: list[ChartRecord]
    """What the views draw of the evaluations."""
    metrics: list[MetricRecord]
    """What the task's metrics mean."""
    resumed_at: int
    """Steps that were done when this session of the run began; missing where it was the first."""
    schedule: dict[str, Any]
    """The learning rate's: `learning_rate` (its peak), `warmup_steps`, `schedule` (`constant` or `cosine`) and
    `max_steps`, at which a cosine ends."""
    split: dict[str, dict[str, Any]]
    """`train` and `validation`: how many `samples` and `objects`, a `digest` of the samples' ids (SHA-256, 16 digits),
    and `object_ids` where there are at most 64. Missing where nothing is held out."""
    start: dict[str, Any]
    """Where training began with the weights of another run: its folder `run`, the `step` of its checkpoint, whose
    `weights` (`ema`, `raw`, `exported`), and their file's `sha256`. Missing elsewhere."""
    changed: list[str]
    """What is configured otherwise than in the sessions before, `KEY OLD -> NEW` each; missing where nothing is."""
    command: list[str]
    """Words of the command of this session, behind `shadowlab`."""
    started: str
    """When this session wrote it: UTC, ISO 8601."""


class TrainingStep(Record, total=False):
    """One optimizer step.

    Its `kind` is `train`, or what the header before it calls `stage`. Numbers are drawn as `KIND/KEY`.
    """

    loss: float
    """Mean over the samples of all processes; in a watched loop the sum of what a step differentiated, the mean over
    its processes."""
    grad_norm: float
    """L2 norm of all gradients before clipping, without the gradient scaler's factor; missing where the loop took
    another norm."""
    loss_by_t: dict[str, float]
    """Mean loss of the samples in each quarter of the diffusion time that has some; keys are its ends, `0.25-0.50`."""
    learning_rate: float
    """Of the first parameter group in this step."""
    step_seconds: Seconds
    """Time of the step without the wait for its data."""
    data_wait_seconds: Seconds
    """Time spent waiting for the data of this step."""
    samples: list[str]
    """Ids of the samples of all processes, in the order of the data stream."""
    skipped: bool
    """Whether the gradient scaler skipped the optimizer's step."""
    tripped: bool
    """Whether the step met a value that is not finite, so that no update was made; an `incident` of the same step says
    where it was born. `layers` are then those of its repetition, as far as that came, `parameters` have gradients
    alone, and what was not reached is missing. Written where it is true."""
    num_skipped: int
    """Skipped steps so far, this one included."""
    memory_gib: Gibibytes
    """What the first process holds: tensors on a GPU, else its resident memory."""
    grad_norm_clipped: float
    """The norm that the optimizer saw; missing where the step was skipped."""
    loss_scale: float
    """The gradient scaler's factor before the step; in records with statistics."""
    data_wait_share: float
    """Share of the time since the wait began that went into waiting, 0 to 1."""
    ema_distance: float
    """Norm of the difference of averages and weights over the norm of the weights; in records with statistics."""
    ema_moved: float
    """Norm of the averages' move in this step over what their decay asks for, about 1; in records with statistics,
    missing where they were equal to the weights."""
    gradient_carried: float
    """L2 norm of the gradients that were there before the step's first forward pass, 0 where they were cleared; in
    records with statistics."""
    num_updates: int
    """How often the optimizer was stepped; in records with statistics."""
    frozen_moved: dict[str, float]
    """Frozen parameters that are not what they were when the session began -> their change over their norm; empty where
    none is. In records with statistics."""
    input_std: dict[str, float]
    """Part of the batch that the model is given -> standard deviation of its values on the first process; in records
    with statistics."""
    input_max: dict[str, float]
    """The same -> largest magnitude."""
    layers: dict[str, dict[str, dict[str, float]]]
    """Layer -> `activation` or `gradient` -> statistics, in the order of execution; in records with statistics.
    `gradient` is that of the loss by the layer's output, missing where none arrived, without the gradient scaler's
    factor but for `headroom_bits`."""
    parameters: dict[str, dict[str, float | None]]
    """Parameter -> its gradient and update; in records with statistics."""
    histograms: dict[str, dict[str, Any]]
    """`histogram_weight/PARAMETER` and `histogram_gradient/PARAMETER` (after clipping) -> histogram; in records that
    are due."""


class Evaluation(Record, total=False):
    """The model judged on the same samples with the same noise each time, so that two steps can be compared.

    Its `kind` is a name of its own, such as `validation` (held-out samples) or `fixed_grid` (the samples of an
    overfit). Next to these keys stand the numbers that the task measures.
    """

    loss: float
    """Mean over samples, noises and diffusion times."""
    r2: float
    """Share of the target's variance that the prediction explains, 1 at best; -Inf for a constant target."""


class Incident(Record, total=False):
    """A step that met a value that is not finite, and was not taken."""

    verdict: dict[str, Any]
    """Where the value was born, and why."""
    state: str | None
    """Folder that holds the state before the step; None where none was kept."""


class FindingRecord(TypedDict):
    """One thing that a health rule objects to."""

    rule: str
    """Name of the rule."""
    severity: str
    """`alarm` for what has spoiled the run, or will if nothing changes; `warning` for what is worth a look."""
    step: int | None
    """The step that showed it; None where the run as a whole does."""
    evidence: str
    """The numbers."""
    advice: str
    """What to change or look at."""
    layer: str | None
    """The layer concerned."""
    parameter: str | None
    """The parameter concerned."""
    predicted_step: int | None
    """When it will overflow, where the rule predicts that."""
    part: str | None
    """`activation` or `gradient`, where the finding is about one of a layer's."""
    subject: str | None
    """What else is concerned: an input, an optimizer, a call."""


class Health(Record, total=False):
    """What the health rules found while the run was under way, each thing once."""

    findings: list[FindingRecord]
    """New in this step."""


class Stage(Record, total=False):
    """How a stage ended, or a part of one that was resumed."""

    stage: str
    """Name of the stage."""
    passed: bool
    """Whether it met its criterion."""
    message: str
    """What to look at; empty where it passed."""
    summary: dict[str, Any]
    """The stage's figures, as stages.json has them."""


class OpenKey(NamedTuple):
    """Keys that a type cannot name, for a task or a loop chooses them. All hold numbers."""

    pattern: str
    """As `fnmatch` reads it."""
    meaning: str


OPEN_KEYS: dict[type, tuple[OpenKey, ...]] = {
    TrainingStep: (OpenKey("*", "Any other number of your own loop."),),
    Evaluation: (
        OpenKey("loss_t*", "Mean loss at one diffusion time: `loss_t0.25`."),
        OpenKey(
            "response_*",
            "Relative change of the output when this condition alone is changed; 0 where the model does not see it.",
        ),
        OpenKey("*", "Any other number that the task judges a prediction, or a baseline, by: `rmse`, `black_rmse`."),
    ),
}


class Kinds:
    """Tells training steps from evaluations, as the records themselves do; see the module.

    Hand it every record, in order.
    """

    def __init__(self) -> None:
        self.steps = {"train"}
        """The kinds of training steps that are known so far."""

    def learn(self, record: Mapping[str, Any]) -> str:
        """Returns the record's kind."""
        kind = str(record.get("kind", "train"))
        if kind == "header":
            self.steps.add(str(record.get("stage", "train")))
        elif kind not in WORDS and kind not in self.steps and not STEP_KEYS.isdisjoint(record):
            self.steps.add(kind)
        return kind

    def is_evaluation(self, kind: str) -> bool:
        return kind not in self.steps and kind not in WORDS


def evaluation(kind: str, step: int, numbers: Mapping[str, float]) -> Evaluation:
    """The record of one evaluation.

    Args:
        kind: `validation`, or another name that is no kind of training steps.
        step: optimizer steps done.
        numbers: `loss`, `r2` and what else the task measures, in the order in which it is shown.

    Raises:
        ValueError: the kind is one of `WORDS`, or a number has the name of another key.
    """
    taken = sorted(({"kind", "step"} | STEP_KEYS) & set(numbers))
    if kind in WORDS or taken:
        raise ValueError(f"an evaluation is no {kind} and has no number called {', '.join(taken) or kind}")
    return cast(Evaluation, {"kind": kind, "step": step, **numbers})
