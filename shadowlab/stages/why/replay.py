"""A captured step, run again from fresh copies of the state before it, as it was or with one thing changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diagnostics import NonFiniteError, Verdict, all_finite
from diagnostics.files import read_json
from diagnostics.incidents import environment
from diagnostics.watching import OptimizerState
from shadowlab.distributed import SingleProcess
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.settings import Config, DiagnosticsConfig, load_kept_config
from shadowlab.tasks import open_task
from shadowlab.training import (
    CapturedStep,
    StepOutcome,
    Trainee,
    build_trainee,
    build_unet,
    captured_batches,
    captured_state,
    complete_checkpoints,
    load_checkpoint,
    restore_bad_tensors,
    state_tensors,
    step_of,
    training_step,
)


@dataclass(frozen=True)
class Attempt:
    """One run of the step."""

    verdict: Verdict | None
    """None where it was finite."""
    outcome: StepOutcome | None
    """None where it was not."""
    largest_change: float | None
    """Of any weight, where the step was finite."""


class Replay:
    """The step of one incident.

    The model is the one that the configuration describes: changes that a script made to it are not there.

    Attributes:
        base: checkpoint that the step starts from; None for the configuration's first weights.
        is_exact: whether that is the state before the step.
        previous: the last good checkpoint of the run before the step, if it is not `base`.

    Raises:
        UserError: configuration, batch or step.json cannot be read.
    """

    def __init__(self, incident: Path, device: torch.device) -> None:
        self.incident, self.device = incident, device
        self.captured = CapturedStep.read(incident)
        if not (incident / "config.yaml").is_file():
            raise UserError(f"{incident / 'config.yaml'}: missing; --no-counterfactuals prints the verdict alone")
        self.config = load_kept_config(incident / "config.yaml")
        self._task = open_task(self.config)
        self.batches = captured_batches(incident, device)
        step = self.captured.place.step
        folder = incident.resolve().parent.parent / "checkpoints"
        good = [path for path in complete_checkpoints(folder) if (step_of(path) or 0) <= step]
        self._kept = kept = captured_state(incident)
        self.base = kept or (good[-1] if good else None)
        same_step = step == 0 if self.base is None else step_of(self.base) == step
        self.is_exact = kept is not None or (same_step and not self.captured.bad_tensors)
        self.has_bad_tensors = kept is not None and bool(self.captured.bad_tensors)
        earlier = [path for path in good if path != self.base and ((step_of(path) or 0) < step or self.has_bad_tensors)]
        self.previous = earlier[-1] if earlier else None

    def origin(self) -> str:
        """Where the step starts from, in words."""
        if self._kept is not None:
            return "the state before the step, as it was captured"
        note = self.captured.state_note
        if note.startswith("kept"):
            note = f"kept, but {self.incident / 'state'} is gone or incomplete"
        found = f"{self.base}" if self.base is not None else "the configuration's first weights"
        exact = "which are those before the step" if self.is_exact else "NOT those before the step"
        return f"{found}, {exact} (the state was {note})"

    def ids(self) -> list[str]:
        """Of all samples of the step in this process."""
        return [name for batch in self.batches for name in batch.ids]

    def alone(self, number: int) -> list[EncodedBatch]:
        """The sample with this number as the whole step, with the noise and t that it had."""
        for batch in self.batches:
            if number < len(batch.ids):
                return [batch.select(slice(number, number + 1))]
            number -= len(batch.ids)
        raise IndexError(number)

    def trainee(
        self, *, precision: str | None = None, checkpoint: Path | None = None, repaired: bool = False
    ) -> Trainee:
        """The model in its state before the step.

        Args:
            precision: another than the run's. checkpoint: start from this one instead.
            repaired: leave elements that were not finite at 0.
        """
        base = checkpoint or self.base
        config = self._config(precision or self.captured.precision, base)
        trainee = build_trainee(
            config,
            build_unet(config, self._task.spec, self.device, downloads=False),
            self._task.objective,
            SingleProcess(self.device),
            self.captured.optimizer,
            self.captured.max_steps,
            ema_decay=self.captured.ema_decay,
        )
        if base is not None:
            load_checkpoint(base, trainee, converts=True)  # a counterfactual may have another precision
        if self.has_bad_tensors and not repaired and checkpoint is None:
            restore_bad_tensors(self.incident, trainee)
        return trainee

    def run(self, trainee: Trainee) -> Attempt:
        """The whole step, watched. The trainee is afterwards as it was before."""
        with _undone(trainee) as before:
            try:
                outcome = training_step(trainee, self.batches, self.captured.place)
            except NonFiniteError as error:
                return Attempt(error.verdict, None, None)
            return Attempt(None, outcome, _largest_change(trainee, before))

    def fails(self, trainee: Trainee, batches: Sequence[EncodedBatch]) -> bool:
        """Whether the step with these samples is not finite: a quick check that names no place."""
        is_collapsed = trainee.watch.skips_in_a_row >= self.config.train.max_consecutive_skips
        trainee.watch.detach()
        with _undone(trainee):
            try:
                outcome = training_step(trainee, batches, self.captured.place)
            except NonFiniteError:
                return True
            return (outcome.skipped and is_collapsed) or not bool(all_finite(state_tensors(trainee).values()))

    def differences(self) -> list[str]:
        """What is not as it was when the step failed."""
        try:
            then = read_json(self.incident / "environment.json", inside=self.incident)
        except (OSError, ValueError):
            then = None
        if not isinstance(then, dict):
            return ["environment.json cannot be read: whether versions and devices are the same is not known"]
        now = environment()
        found = [f"{key} was {then.get(key)}, is {now[key]}" for key in ("torch", "cuda") if then.get(key) != now[key]]
        if torch.device(self.captured.device).type != self.device.type:
            found.append(f"captured on {self.captured.device}, repeated on {self.device}: other kernels")
        if self.captured.num_processes > 1:
            found.append(
                f"{self.captured.num_processes} processes then, one now: the other ranks' gradients are missing"
            )
        return found

    def _config(self, precision: str, weights: Path | None) -> Config:
        quiet = DiagnosticsConfig(statistics_every=0, histograms_every=0)
        model = self.config.model.model_copy(update={} if weights is None else {"weights": str(weights)})
        changes = {"precision": precision, "model": model, "seed": self.captured.seed, "diagnostics": quiet}
        return self.config.model_copy(update=changes)


def _averages(trainee: Trainee) -> list[Tensor]:
    return [] if trainee.ema is None else trainee.ema.shadow_params


@contextmanager
def _undone(trainee: Trainee) -> Iterator[OptimizerState]:
    """Afterwards the trainee is as it was before. Yields copies of what an optimizer changes."""
    before = OptimizerState([trainee.optimizer], trainee.parameters().values(), _averages(trainee))
    updates = None if trainee.ema is None else trainee.ema.optimization_step
    scale = None if trainee.scaler is None else trainee.scaler.state_dict()
    skips = (trainee.watch.skips_in_a_row, trainee.watch.num_skipped)
    try:
        yield before
    finally:
        before.restore()
        trainee.watch.skips_in_a_row, trainee.watch.num_skipped = skips
        if trainee.ema is not None and updates is not None:
            trainee.ema.optimization_step = updates
        if scale is not None:
            trainee.scaler = torch.amp.GradScaler(trainee.device.type)  # it may have stopped between two of its calls
            trainee.scaler.load_state_dict(scale)


def _largest_change(trainee: Trainee, before: OptimizerState) -> float:
    """The optimizer step's, over all weights that train."""
    pairs = [(p.detach(), before.values_of(p)) for p in trainee.parameters().values()]
    changes = [(new.float() - old.float()).abs().max() for new, old in pairs if old is not None]
    return torch.stack(changes).max().item()
