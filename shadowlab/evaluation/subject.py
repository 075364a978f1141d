"""What is judged, on which samples: opened from the words of a command."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shadowlab.data import SampleSet, one_line
from shadowlab.distributed import Processes
from shadowlab.errors import UserError
from shadowlab.evaluation.methods import Fixed, Generated, Method, Remembered, Together
from shadowlab.evaluation.trained_on import TrainedOn, trained_on
from shadowlab.inference import LoadedModel, Weights, open_model
from shadowlab.settings import MAX_IMAGE_SIZE, Config, load_config
from shadowlab.tasks import TRUTH, Evaluation, Task, TaskBatch, Tracks, open_task

DEFAULT_STEPS = (1, 4, 20)
DEFAULT_SEEDS = 10
_STEPS = "--steps: whole numbers from 1 to 1000 with commas between them, as 1,4,20"
TRAINED = "{track}, trained objects"
"""Name of the track of those samples whose object is in the training split."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a user asks to be judged; None: by default."""

    place: str = ""
    """A model, as `open_model` takes it; or a baseline's name with hyphens (`drop-shadow`), or `truth`."""
    data: str | None = None
    """Data set; the model's own, or `embedded`."""
    steps: tuple[int, ...] | None = None
    num_seeds: int | None = None
    weights: Weights | None = None
    image_size: int | None = None
    """Pixels; the model's own, or the default preset's."""
    baselines: bool = True
    control_objects: int = 16
    """Of which control is measured, at most."""
    task_options: Mapping[str, Any] = field(default_factory=dict)
    """Of the task, in place of the model's own."""
    output_dir: str | None = None
    """Where runs are looked for."""

    def of(self, place: str) -> "Question":
        """The same of another model."""
        return replace(self, place=place)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is judged and everything that judges it, the same on every process."""

    name: str
    """For people: `runs/first, step 200, EMA weights`."""
    short_name: str
    """For files: `first-step-00000200-ema`."""
    task: Task[Any]
    """With the data that is judged on."""
    data: SampleSet[Any]
    where: str
    """The data set as it was named."""
    image_size: int
    tracks: Tracks
    methods: tuple[Method, ...]
    """Those that are asked about, then the baselines."""
    num_own: int
    """How many of the methods are asked about."""
    weights: str
    """`ema`, `raw`, `exported`, or `none` of a baseline."""
    steps: tuple[int, ...]
    """Of the model; empty of a baseline."""
    num_seeds: int
    """0 of a baseline."""
    control_objects: int
    model: LoadedModel | None

    @property
    def evaluation(self) -> Evaluation[Any]:
        return self.task.evaluation

    @property
    def ranked(self) -> Method:
        """By which samples are picked: the first that is asked about; of the truth the last baseline."""
        return self.methods[0] if self.methods[0].obeys else self.methods[-1]

    def batch(self, number: int) -> TaskBatch:
        """One sample alone. Raises UserError that names it."""
        return self.task.collate([self.data[number]])

    def basis(self) -> dict[str, Any]:
        """JSON of what decides the numbers: where it is another one, other numbers come of it."""
        return {
            "task": self.task.name,
            "data": self.data.fingerprint(),
            "image size": self.image_size,
            "model": None if self.model is None else self.model.digest(),
            "methods": [method.name for method in self.methods],
            "seeds": self.num_seeds,
            "control objects": self.control_objects,
            "settings": dict(self.evaluation.settings),
        }

    def trained(self) -> TrainedOn:
        """Of each sample whether the model was trained on its object."""
        if self.model is None:
            return TrainedOn(np.zeros(len(self.data), np.bool_), "")
        return trained_on(self.model, self.data)


def open_subject(question: Question, processes: Processes) -> Subject:
    """Raises UserError where there is no such model, baseline or data set, or a track is missing."""
    steps, num_seeds = _checked(question)
    config, place = _changed(load_config(), question), question.place
    task = open_task(config)
    words = {name.replace(" ", "-"): name for name in task.evaluation.baselines}
    model = None
    if place not in words and place != TRUTH:
        weights = question.weights or "ema"
        model = open_model(place, device=processes.device, weights=weights, output_dir=question.output_dir)
        config = _changed(model.config, question)
        task = open_task(config, vae=model.task.vae)
    data, size, evaluation = _open_data(task, processes), config.data.image_size, task.evaluation
    own: list[Method]
    fixed = {name: Fixed(name, predict) for name, predict in evaluation.baselines.items()}
    if model is not None:
        own = _of_model(evaluation, [Generated(model, task, size, count, num_seeds) for count in steps])
    else:
        own = [Fixed(TRUTH, task.target, obeys=False) if place == TRUTH else fixed.pop(words[place])]
    return Subject(
        name=own[0].name if model is None else model.text,
        short_name=place if model is None else _short_name(model),
        task=task,
        data=data,
        where=one_line(config.data.path),
        image_size=size,
        tracks=evaluation.tracks(data),
        methods=(*own, *(fixed.values() if question.baselines else ())),
        num_own=len(own),
        weights="none" if model is None else model.weights,
        steps=() if model is None else steps,
        num_seeds=0 if model is None else num_seeds,
        control_objects=question.control_objects if evaluation.control_texts else 0,
        model=model,
    )


def _of_model(evaluation: Evaluation[Any], drawn: list[Generated]) -> list[Method]:
    """Each number of steps; and what its seeds make together, where the task says how and there are several."""
    ensemble = getattr(evaluation, "ensemble", None)
    if ensemble is None or drawn[0].num_seeds == 1:
        return [*drawn]
    singles = [Remembered(one) for one in drawn]
    return [*singles, *(Together(one, ensemble) for one in singles)]


def ignored_options(question: Question, subject: Subject) -> list[str]:
    """Options that were given and are of no effect: a baseline draws nothing."""
    if subject.model is not None:
        if question.weights is not None and question.weights != subject.weights:
            return [f"--weights {question.weights}: {subject.model.name} has {subject.weights} weights alone"]
        return []
    given = {"--steps": question.steps, "--seeds": question.num_seeds, "--weights": question.weights}
    return [f"{name} is of no effect: {subject.name} draws nothing" for name, value in given.items() if value]


def _checked(question: Question) -> tuple[tuple[int, ...], int]:
    steps = DEFAULT_STEPS if question.steps is None else question.steps
    num_seeds = DEFAULT_SEEDS if question.num_seeds is None else question.num_seeds
    if not steps or any(not 1 <= count <= 1000 for count in steps):
        raise UserError(_STEPS)
    if question.weights not in (None, "ema", "raw"):
        raise UserError(f"--weights {question.weights}: ema (the average of training) or raw (of the last step)")
    if not 1 <= num_seeds <= 10_000:
        raise UserError(f"--seeds {num_seeds}: how many there are, from 1 to 10000")
    size = question.image_size
    if size is not None and (size % 8 or not 32 <= size <= MAX_IMAGE_SIZE):
        raise UserError(f"--image-size {size}: a multiple of 8 from 32 to {MAX_IMAGE_SIZE}")
    return tuple(sorted(set(steps))), num_seeds


def parse_steps(text: str | None) -> tuple[int, ...] | None:
    """`1,4,20` as numbers; None where nothing is given. Raises UserError."""
    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(_STEPS) from None


def _changed(config: Config, question: Question) -> Config:
    update: dict[str, Any] = {} if question.data is None else {"path": question.data}
    update |= {} if question.image_size is None else {"image_size": question.image_size}
    options = {**config.task_options, **question.task_options}
    return config.model_copy(update={"data": config.data.model_copy(update=update), "task_options": options})


def _short_name(model: LoadedModel) -> str:
    step = "" if model.step is None else f"-step-{model.step:08d}"
    folder = model.place.folder if model.step is None else model.place.folder.parent.parent
    return f"{folder.resolve().name}{step}-{model.weights}"


def default_out(subject: Subject) -> Path:
    """evaluations/MODEL-on-DATA in the current folder."""
    name = f"{subject.short_name}-on-{subject.data.name}"
    return Path("evaluations") / "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:200]


def _open_data(task: Task[Any], processes: Processes) -> SampleSet[Any]:
    """The first process of each machine reads all names and metadata; of a large set the others read its index."""
    data = None
    with processes.together():
        if processes.is_first_here:
            data = task.open_data()
    with processes.together():
        opened = task.open_data() if data is None else data
    if processes.count > 1 and len(set(processes.gather([opened.fingerprint()]))) > 1:
        error = UserError(f"{opened.name}: changed while it was opened; start again")
        error.shared = True
        raise error
    return opened
