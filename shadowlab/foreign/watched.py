"""A script's steps under `Watch`; one that trips is explained by a copy of its loop's body, where that can be run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from diagnostics import NonFiniteError, Verdict, Watch, nearby
from diagnostics.watching import Attempt, Attempts
from shadowlab.foreign.facts import Facts
from shadowlab.foreign.following import Finding, Following, Step, raised_as
from shadowlab.foreign.loop_body import Body, NoBodyError

_FIX = "trace the step: the command is below"


@dataclass(frozen=True)
class Recording:
    """What is written of the steps that are healthy."""

    folder: Path
    """Of metrics.jsonl."""
    statistics_every: int
    """Steps between statistics of every layer and parameter; 0 for never."""


class Watched:
    """Attends a script's steps with a `Watch` over all that its optimizers train."""

    following: Following
    """Of the script; set before it runs."""

    def __init__(self, incidents: Path | None, recording: Recording | None = None) -> None:
        self._incidents, self._recording = incidents, recording
        self._watch: Watch | None = None
        self._models: list[nn.Module] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        self._attempts: Attempts | None = None
        self._attempt: Attempt | None = None

    # Steps

    def begin(self, step: Step, models: list[nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
        """A step begins."""
        if self._watch is None or self._models is not models:
            self._models = models
            # Without a model nobody could tell which optimizers are meant; else those that step are noticed.
            given = None if models else optimizers
            self._watch = self._new_watch(models, given, step.index)
        self._optimizers = optimizers
        self._attempts = self._watch.attempts(batch=step.batch, step_index=step.index)
        self._attempt = next(self._attempts)
        self._attempt.__enter__()

    def end(self, step: Step, error: BaseException | None, now: Sequence[tuple[FrameType, int]]) -> Finding | bool:
        """It has ended: what was found, or whether the error is the watch's."""
        attempts, attempt = self._attempts, self._attempt
        assert attempts is not None and attempt is not None
        known = None if error is None else step.facts.verdict(fix=_FIX)
        if not step.batch:
            step.batch.update(step.facts.inputs)
        attempt.__exit__(*raised_as(error))
        self._attempt = None
        if attempt.following is None:
            return False
        attempts.fall_back_on(known or Verdict("optimizer", None, "unknown", fix=_FIX))
        try:
            body = Body(now, step.before, step.marks, [batch for batch, _ in step.delivered])
        except NoBodyError as reason:
            return _finding(attempts.give_up(), f"it was not repeated here: {reason}", is_explained=False)
        return self._repeated(step, body, error)

    def abandon(self) -> None:
        """The script has ended within a step."""
        if self._attempt is not None:
            left = GeneratorExit()  # is nobody's fault, and no reason to look
            self._attempt.__exit__(type(left), left, None)
            self._attempt = None

    def _new_watch(self, models: list[nn.Module], optimizers: list[torch.optim.Optimizer] | None, index: int) -> Watch:
        recording = self._recording
        if recording is None:
            return Watch(models, optimizers, incidents=self._incidents, statistics_every=0)
        if self._watch is not None and index == 0:  # it has ended no step: there is nothing to keep
            (recording.folder / "metrics.jsonl").unlink(missing_ok=True)
        return Watch(
            models,
            optimizers,
            incidents=self._incidents,
            records=recording.folder,
            statistics_every=recording.statistics_every,
        )

    # What was found

    def _repeated(self, step: Step, body: Body, error: BaseException | None) -> Finding | bool:
        assert self._attempts is not None
        where = f"a copy of the loop's body, {nearby(body.source)}"
        with self.following.repeating(step) as facts:
            try:
                for attempt in self._attempts:
                    with attempt:
                        if step.randomness is not None:
                            step.randomness.restore()
                        body.run()
            except NonFiniteError as found:
                if found.verdict.reproducible is not True:
                    note = f"{where}, was run here and was finite, or came to no end"
                    return _finding(found, note, is_explained=False)
                return _finding(found, f"it was repeated by {where}{_compared(step.facts, facts)}", is_explained=True)
            except Exception as raised:
                if raised is error:  # it has nothing to do with a value that is not finite
                    return False
                raise
        return True  # what looked bad was meant, and the copy has done the step


def _finding(error: NonFiniteError, note: str, *, is_explained: bool) -> Finding:
    """`note`: how the verdict came about."""
    state = (
        "nothing of the step was kept: parameters and optimizer states were put back before the script was stopped"
        if error.is_restored
        else "the optimizer had moved already: parameters were NOT put back"
    )
    left = "not undone: what the script itself wrote, printed and counted, and where its data iterator stands"
    return Finding(error.verdict, error.incident, (note, state, left), is_explained, error.__cause__)


def _compared(first: Facts, second: Facts) -> str:
    """Whether the repetition was the same, as far as that shows."""
    pairs = list(zip(first.loss_values(), second.loss_values(), strict=False))
    if not pairs:
        return ""
    if all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs):
        return "; its loss was the same"
    return f"; its loss was {second.loss_text()}, not {first.loss_text()}, so that the two are not the same"
