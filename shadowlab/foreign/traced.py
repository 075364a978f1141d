"""A script run again from its beginning, to trace one of its steps."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from diagnostics.incidents import write_incident
from diagnostics.tracing import Explanation
from diagnostics.watching import Randomness
from shadowlab.foreign.following import Finding, Step, raised_as


class _Enough(BaseException):
    """The origin is known: the rest of the step teaches nothing."""


class Traced:
    """Attends a script's steps: those before one are only counted, that one runs under tracing and ends the script."""

    def __init__(self, index: int, incidents: Path | None) -> None:
        """`index`: 0-based number of the step."""
        self._index, self._incidents = index, incidents
        self._tracing = ExitStack()
        self._explanation: Explanation | None = None
        self._randomness: Randomness | None = None

    def begin(self, step: Step, models: list[nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
        """A step begins."""
        if step.index == self._index:
            self._randomness = Randomness()
            self._explanation = Explanation(models, optimizers, None)
            self._tracing.enter_context(self._explanation.tracing(_Enough))

    def end(self, step: Step, error: BaseException | None, now: Sequence[tuple[FrameType, int]]) -> Finding | bool:
        """It has ended."""
        if step.index != self._index:
            return False
        explanation = self._explanation
        assert explanation is not None and self._randomness is not None
        was_enough = self._tracing.__exit__(*raised_as(error))
        failure = error if isinstance(error, Exception) else None
        if error is not None and failure is None and not was_enough:
            return False  # an interruption
        verdict = explanation.verdict(None, failure)
        if verdict is None:
            return False if failure is not None else Finding(None, None, (), is_explained=False)
        verdict = replace(verdict, step=step.index)
        incident = None
        if self._incidents is not None:
            incident = write_incident(
                self._incidents,
                verdict,
                culprit=explanation.culprit,
                batch=step.batch or step.facts.inputs,
                randomness=self._randomness.tensors(),
            )
        explanation.forget()
        return Finding(verdict, incident, (), is_explained=True, cause=failure)

    def abandon(self) -> None:
        """The script has ended within a step."""
        self._tracing.close()
