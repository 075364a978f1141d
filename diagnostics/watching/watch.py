"""Full-speed training steps that stop before a non-finite value is kept, and then say where it was born.

A healthy step costs one joint norm of the gradients (none where the loop clips: its norm is used) and one read of a
device flag, made before the optimizer step. On a trip the same step runs again, from the same parameters, buffers
and randomness, under `explain`.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar, get_args

from torch import Tensor, nn

from diagnostics.errors import NonFiniteError
from diagnostics.modules import models_in, optimizers_in
from diagnostics.statistics import LayerStatistics, TensorStatistics
from diagnostics.verdict import Verdict
from diagnostics.watching.boundary import Boundary, Skips, Trip, noted_phase, noted_text
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.policy import Policy, When
from diagnostics.watching.replay import Replay, StopReplay

Result = TypeVar("Result")
_ONE_AT_A_TIME = threading.RLock()  # a step is observed through functions of torch, of which there is one


class Watch:
    """Watches every training step of a loop.

        watch = Watch(model, optimizer, incidents="incidents")
        for batch in loader:
            loss = watch.step(lambda: train_one(batch), batch=batch)

    The callable does one whole optimizer step: forward, backward, clipping, `optimizer.step()`. It is called again
    on a trip, so it must not consume its batch. Undone are parameters, buffers, optimizer states, averages, a gradient
    scaler and the randomness of torch, Python and NumPy; not what else the callable changes, such as learning-rate
    schedulers and generators of its own. Gradients are dropped. Threads take turns.

    Where copies are kept, they are of the parameters that the optimizers hold and that train. The first step shows what
    else a step writes to, such as an average in a frozen module: a frozen parameter is copied once an operator is about
    to write to it, and from then on with the others. One that is only read costs no copy.
    """

    layers: dict[str, dict[str, TensorStatistics]]
    """Statistics of the last step that measured them, as `LayerStatistics.collect` gives them."""

    incidents: Path | None
    """Where incidents are written; None for nowhere."""

    on_trip: Callable[[], None] | None
    """Called before a step that tripped is repeated, which takes many times as long."""

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: Any = None,
        *,
        statistics_every: int = 50,
        incidents: Path | str | None = "incidents",
        averages: Iterable[Tensor] = (),
        safe_averages: Iterable[Tensor] = (),
        undo: When = "auto",
        max_consecutive_skips: int = 20,
    ) -> None:
        """Ready to watch; nothing is hooked until a step runs.

        Args:
            model: A module or several.
            optimizer: What steps inside the callable, one or several of any class with a `step` method; None for a
                loop that updates by hand. Without it, torch's are noticed when they step.
            statistics_every: Steps between full statistics of every layer (`layers` after such a step); 0 for never.
                Modules that come or go are noticed then, and at `attach`.
            incidents: Folder for `step-XXXXXXXX` folders; None writes none.
            averages: Tensors of weight averages that the step updates, any shape. They are checked after every step,
                for which everything is copied before it; see `safe_averages`.
            safe_averages: Averages whose update keeps them finite where the parameters are (a decay between 0 and 1,
                not in float16). They are undone, and checked where copies are kept, but cause no copy.
            undo: `auto` copies parameters and optimizer state before a step only where the optimizer could make
                non-finite values of finite gradients (`undo_reason` says why: half parameters, an unknown optimizer,
                an odd eps, several optimizers): one copy in time and memory. `always` and `never` do as they say.
            max_consecutive_skips: A gradient scaler that skips this many steps in a row is a finding.

        Raises:
            TypeError: `model` or `optimizer` is something else.
            ValueError: another argument has no such value.
        """
        if undo not in get_args(When):
            raise ValueError(f"undo: one of {', '.join(get_args(When))}, not {undo!r}")
        if statistics_every < 0 or max_consecutive_skips < 1:
            raise ValueError("statistics_every: 0 or more; max_consecutive_skips: 1 or more")
        models, optimizers = models_in(model), optimizers_in(optimizer)
        self._adopts = not optimizers
        self._guarded = Guarded(models, optimizers, list(averages), list(safe_averages))
        self._policy = Policy(undo, self._guarded)
        self._skips = Skips(limit=max_consecutive_skips)
        self._every = statistics_every
        self.incidents = None if incidents is None else Path(incidents)
        self.on_trip = None
        self.layers = {}
        self._layers = [LayerStatistics(one) for one in models]
        self._attached = True
        self._now: Boundary | Replay | None = None  # what follows the step that is running
        self._num_steps = 0

    @property
    def undo_reason(self) -> str | None:
        """Why parameters and state are copied before each step; None where they are not."""
        return self._policy.reason

    @property
    def num_skipped(self) -> int:
        """Steps that a gradient scaler left out, in all. Set it on resume."""
        return self._skips.total

    @num_skipped.setter
    def num_skipped(self, number: int) -> None:
        self._skips.total = number

    @property
    def skips_in_a_row(self) -> int:
        """Steps that a gradient scaler has left out just now. Set it on resume."""
        return self._skips.in_a_row

    @skips_in_a_row.setter
    def skips_in_a_row(self, number: int) -> None:
        self._skips.in_a_row = number

    def attach(self) -> None:
        """Watch again (the state after construction)."""
        self._attached = True
        self._guarded.forget_steps()
        self._guarded.renew()
        for layers in self._layers:
            layers.attach()

    def detach(self) -> None:
        """Take every hook off; `step` only calls its callable until `attach`."""
        self._attached = False
        for layers in self._layers:
            layers.detach()

    def is_due(self, step_index: int) -> bool:
        """Whether the step with this 0-based index measures every layer."""
        return self._every > 0 and (step_index == 0 or (step_index + 1) % self._every == 0)

    def step(self, step: Callable[[], Result], *, batch: Any = None, step_index: int | None = None) -> Result:
        """Run one step; returns what it returns.

        Args:
            batch: names the step's tensors and samples, see `explain`.
            step_index: 0-based number of the step; without it steps are counted from 0.

        Raises:
            NonFiniteError: a loss that was differentiated, a gradient, norm, buffer, parameter, state or average is
                not finite, or a gradient scaler collapsed. Its text says whether everything is as before the step, as
                it is but for what no watch can foresee: an optimizer that steps a second time in the callable, or
                writes outside of it.
            RuntimeError: inside a step of the same watch.
        """
        index = self._num_steps if step_index is None else step_index
        self._num_steps = index + 1
        if not self._attached:
            return step()
        with _ONE_AT_A_TIME:
            if self._now is not None:
                raise RuntimeError("Watch.step inside a step of the same watch; give each loop a watch of its own")
            try:
                return self._step(step, batch, index)
            finally:
                self._now = None  # and the copies with it

    def note(self, *, loss: float, grad_norm: float) -> None:
        """For a loop that reads its loss and gradient norm before `optimizer.step()` anyway.

        Nothing more is read, but for one flag where the model has buffers. A number that is not finite ends the
        callable here; `step` raises what comes of it.

        Raises:
            NonFiniteError: outside a watched step, one of them is not finite.
        """
        if self._now is not None:
            self._now.note(loss, grad_norm)
            return
        phase = noted_phase(loss, grad_norm)
        if phase is not None:
            witness, fix = {"seen": noted_text(loss, grad_norm)}, "attach the watch to learn where it was born"
            raise NonFiniteError(Verdict(phase, None, "unknown", witness=witness, fix=fix))

    def _step(self, step: Callable[[], Result], batch: Any, index: int) -> Result:
        due = self.is_due(index)
        if due or self._guarded.is_stale:
            self._guarded.renew()
        boundary = self._now = Boundary(self._guarded, self._policy, self._skips, adopts=self._adopts, may_look=due)
        trip: Trip | None = None
        try:
            with ExitStack() as stack:
                for layers in self._layers:
                    stack.enter_context(layers.recording(enabled=due))
                stack.enter_context(boundary.watching())
                result = step()
            boundary.after_step(result)
        except Trip as caught:
            trip = caught.with_traceback(None)  # its frames hold the step's graph
        if trip is not None:
            error = self._explained(trip, boundary, step, batch, index)
            if error is not None:
                raise error
            return self._step(step, batch, index)  # the buffers' infinities are meant
        self._guarded.note_end_of_step()
        if due:
            self.layers = {name: parts for layers in self._layers for name, parts in layers.collect().items()}
        return result

    def _explained(
        self, trip: Trip, boundary: Boundary, step: Callable[[], Any], batch: Any, index: int
    ) -> NonFiniteError | None:
        """The error to raise; None where the repetition shows that a buffer's infinity is meant."""
        if self.on_trip is not None:
            self.on_trip()
        is_undoable = boundary.is_undoable(trip)
        replay = self._now = Replay(trip, self._guarded, boundary.undo, is_undoable=is_undoable, batch=batch)
        found: Verdict | None = None
        with replay.repeating(tolerates_scaler=not self._skips.are_too_many) as explanation:
            found = explanation.run(step, stop=StopReplay)
        return replay.error(found, index, self.incidents)
