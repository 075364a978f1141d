"""A script followed from one optimizer step to the next.

A step here is what a script does between two optimizer steps, the second one included. It begins and ends inside
calls that the script makes, so that nothing of the script is changed.
"""

import gc
import io
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.data import dataloader

from diagnostics import Verdict, replaced
from diagnostics.watching import Randomness
from shadowlab.foreign.facts import Facts
from shadowlab.foreign.loop_body import Moment, is_installed, places, places_of
from shadowlab.foreign.models import held_by, models_of, owns_any
from shadowlab.foreign.steps import OptimizerSteps

_KEPT_LOSSES = 8  # steps


class Stopped(BaseException):
    """Ends the script. Not an Exception: the script must not swallow it."""


@dataclass
class Step:
    """What was seen of the step that is running."""

    index: int
    """0-based."""
    facts: Facts
    before: list[Moment] = field(default_factory=list)
    """Where the script stood when the step before had ended."""
    backwards: list[dict[int, int]] = field(default_factory=list)
    """Of each backward pass, id of a frame of the script -> line, innermost first, installed packages last."""
    first_call: dict[int, int] | None = None
    """The same of a model's first call."""
    delivered: list[tuple[Any, Any]] = field(default_factory=list)
    """What data loaders gave: batch and iterator."""
    batch: dict[str, Any] = field(default_factory=dict)
    """The last of it, by name."""
    randomness: Randomness | None = None
    """As it was when that was given."""
    ended_by: set[int] = field(default_factory=set)
    """Ids of optimizers that a gradient scaler made step in it."""

    @property
    def marks(self) -> list[dict[int, int]]:
        """What a repetition has to come by."""
        return self.backwards or ([] if self.first_call is None else [self.first_call])

    def take(self, batch: Any, iterator: Any, randomness: Randomness | None = None) -> None:
        """A data loader's iterator has given this."""
        self.delivered.append((batch, iterator))
        self.batch.clear()
        self.batch.update(_named(batch))
        self.randomness = randomness or Randomness()


@dataclass(frozen=True)
class Finding:
    """What stopped the script."""

    verdict: Verdict | None
    """None where the step that was to be traced was finite."""
    incident: Path | None
    notes: tuple[str, ...]
    """Sentences below the verdict."""
    is_explained: bool
    """Whether the verdict names where it was born."""
    cause: BaseException | None = None
    """What the script raised, if that was the sign."""


def raised_as(
    error: BaseException | None,
) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
    """What `__exit__` is given."""
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


class Attendance(Protocol):
    """What is done about each step of a script: watched, counted or traced."""

    def begin(self, step: Step, models: list[nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
        """A step begins."""

    def end(self, step: Step, error: BaseException | None, now: Sequence[tuple[FrameType, int]]) -> Finding | bool:
        """It has ended, or `error` ended it: what was found; else whether the error is ours and the step is done.

        Args:
            now: where the script stands.
        """

    def abandon(self) -> None:
        """The script has ended within it."""


class Following:
    """Of one script, in the thread that runs it."""

    finding: Finding | None
    """What stopped the script; None where nothing did."""

    num_steps: int
    """That have ended."""

    def __init__(self, attendance: Attendance) -> None:
        self._attendance = attendance
        self.steps = OptimizerSteps(self._around_step, self._around_update)
        self.finding = None
        self.num_steps = 0
        self._models: list[nn.Module] = []
        self._held: set[int] = set()
        self._step: Step | None = None
        self._passed: weakref.ref[BaseException] | None = None
        self._hooks = ExitStack()
        self._first_call = ExitStack()
        self._noting = ExitStack()
        self._recent: deque[tuple[int, list[Tensor]]] = deque(maxlen=_KEPT_LOSSES)
        self._repeated: Facts | None = None
        self._again: dict[int, Iterator[Any]] = {}  # id of a loader's iterator -> what it gave
        self._ahead: tuple[Any, Any, Randomness] | None = None  # a batch, before there is a step

    def run(self, script: Callable[[], None]) -> BaseException | None:
        """Run the script; returns what it raised, None where it came to its end or was stopped."""
        with self._hooks, self.steps.seen():
            iterator = dataloader._BaseDataLoaderIter
            self._hooks.enter_context(replaced(torch.autograd, "backward", self._noting_backward))
            self._hooks.enter_context(replaced(iterator, "__next__", self._noting_batch))
            self._first_call.callback(register_module_forward_pre_hook(self._note_call).remove)
            self._hooks.callback(self._first_call.close)
            self._hooks.callback(self._noting.close)
            try:
                script()
            except Stopped:
                return None
            except BaseException as raised:
                return None if self._explains(raised) else raised
            finally:
                if self._step is not None:
                    self._attendance.abandon()
                    self._step = None
        return None

    def recent_losses(self) -> dict[int, list[float]]:
        """0-based step -> what it differentiated, of the last steps. Reads on the host."""
        return {index: [float(one.double().sum()) for one in losses] for index, losses in self._recent}

    @contextmanager
    def repeating(self, step: Step) -> Iterator[Facts]:
        """A copy of the loop's body runs inside: data loaders give it what they gave the first time, its losses are
        noted apart, and what it prints is not shown."""
        numbers = dict.fromkeys(id(iterator) for _, iterator in step.delivered)
        self._again = {n: iter([batch for batch, one in step.delivered if id(one) == n]) for n in numbers}
        self._repeated = Facts([])
        try:
            with self.steps.let_through(), redirect_stdout(io.StringIO()):
                yield self._repeated
        finally:
            self._repeated = None

    def _explains(self, raised: BaseException) -> bool:
        """Whether what the script raised is a finding."""
        if self.finding is not None:
            return True
        if self._step is None or (self._passed is not None and self._passed() is raised):
            return False
        try:
            with self.steps.let_through():
                return self._end(raised, places_of(raised.__traceback__))
        except Stopped:
            return True

    # What is seen

    def _note_call(self, module: nn.Module, inputs: Any) -> None:
        if owns_any(module, held_by(self.steps.optimizers)) and self._step is None and self.finding is None:
            self._begin(module)
            self.facts.note_inputs(module, inputs)  # nobody stands around this call yet

    def _note_first_call(self) -> None:
        if self._step is not None and self._step.first_call is None:
            self._step.first_call = {id(frame): line for frame, line in places(sys._getframe())}

    def _noting_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if self._repeated is not None:
                self._repeated.note_loss(tensors)
            elif self._step is not None:
                self._step.facts.note_loss(tensors)
                here = sorted(places(sys._getframe()), key=lambda place: is_installed(place[0]))
                self._step.backwards.append({id(frame): line for frame, line in here})
            return original(tensors, *args, **kwargs)

        return backward

    def _noting_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def following(iterator: Any) -> Any:
            if self._repeated is not None and id(iterator) in self._again:
                return next(self._again[id(iterator)])
            batch = original(iterator)
            if self._repeated is not None:
                return batch  # of a loader that the body starts itself
            if self._step is not None:
                self._step.take(batch, iterator)
            else:
                self._ahead = batch, iterator, Randomness()
            return batch

        return following

    # From step to step

    def _begin(self, called: nn.Module | None) -> None:
        """The first step begins; or the first with a model that nobody has seen yet."""
        self._first_call.close()
        optimizers = self.steps.optimizers
        self._models = models_of(optimizers, called)
        self._held = held_by(optimizers)
        self.facts = Facts(self._models)
        self._noting.close()
        self._noting.enter_context(self.facts.noting(self._note_first_call))
        self._next([])
        if called is not None and self._step is not None:
            self._note_first_call()
        if self._ahead is not None and self._step is not None:
            self._step.take(*self._ahead)
        self._ahead = None

    def _next(self, before: list[Moment]) -> None:
        self.facts.begin()
        self._step = Step(self.num_steps, self.facts, before)
        self._attendance.begin(self._step, self._models, self.steps.optimizers)

    def _around_step(self, optimizer: Any, call: Callable[[], Any]) -> Any:
        if self.finding is not None:
            raise Stopped  # a script that catches everything does not go on
        if self._step is not None and not held_by([optimizer]) <= self._held:
            self._attendance.abandon()
            self._step = None
            gc.collect()  # what an earlier part of the script trained
        if self._step is None:
            self._begin(None)
        assert self._step is not None
        if id(optimizer) in self._step.ended_by:
            self._boundary()
        with self._stoppable() as is_done:
            result = call()
        if is_done:
            return None
        if self.steps.is_in_scaler:
            self._step.ended_by.add(id(optimizer))  # its `update` ends the step
        else:
            self._boundary()
        return result

    def _around_update(self, scaler: Any, call: Callable[[], Any]) -> Any:
        if self.finding is not None:
            raise Stopped
        with self._stoppable():
            result = call()
        if self._step is not None:
            self._boundary()
        return result

    @contextmanager
    def _stoppable(self) -> Iterator[list[bool]]:
        """What is inside may end the step with an error; the list is not empty where the step is done all the same."""
        done: list[bool] = []
        try:
            yield done
        except BaseException as error:
            if self._step is None:
                raise
            done += [True] * self._end(error, places(sys._getframe()))
            if isinstance(error, Exception) or done:
                self._next([])  # the script may catch it
            if not done:
                self._passed = weakref.ref(error)
                raise

    def _boundary(self) -> None:
        """The step has ended well, as far as the script knows."""
        now = places(sys._getframe())
        self._end(None, now)
        self._next([Moment.of(frame, line) for frame, line in now])

    def _end(self, error: BaseException | None, now: Sequence[tuple[FrameType, int]]) -> bool:
        """Whether an error was ours.

        Raises:
            Stopped: something was found.
        """
        step, self._step = self._step, None
        assert step is not None
        self._recent.append((step.index, step.facts.losses))
        found = self._attendance.end(step, error, now)
        if isinstance(found, Finding):
            self.finding = found
            raise Stopped
        self.num_steps += error is None or found
        return found


def _named(batch: Any) -> dict[str, Any]:
    if isinstance(batch, dict):
        return dict(batch)
    parts = batch if isinstance(batch, (list, tuple)) else [batch]
    return {str(i): part for i, part in enumerate(parts)}
