"""Full-speed training steps that stop before a non-finite value is kept, and then say where it was born.

A healthy step costs one joint norm of the gradients (none where the loop clips: its norm is used) and one read of a
device flag, made before the optimizer step. On a trip the same step runs again, from the same parameters, buffers
and randomness, under `explain`.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

from torch import Tensor, nn

from diagnostics.errors import NonFiniteError
from diagnostics.health import Finding
from diagnostics.modules import models_in, optimizers_in
from diagnostics.statistics import LayerStatistics, TensorStatistics
from diagnostics.verdict import Verdict
from diagnostics.watching.attempts import Attempt, Attempts, First
from diagnostics.watching.boundary import noted_phase, noted_text
from diagnostics.watching.forms import BOTH, called_with_a_step
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.journal import Journal
from diagnostics.watching.kept_contracts import KeptContracts
from diagnostics.watching.left_out import LeftOut
from diagnostics.watching.policy import Policy, When
from diagnostics.watching.skips import Skips
from diagnostics.watching.surroundings import Surroundings, around_body, around_callable, named
from diagnostics.watching.watched import Watched

Result = TypeVar("Result")


class Watch:
    """Watches every training step of a loop.

        watch = Watch(model, optimizer, incidents="incidents")
        for batch in loader:
            loss = watch.step(lambda: train_one(batch), batch=batch)

    A step is forward, backward, clipping and `optimizer.step()`, or one micro-batch of an accumulation. `attempts` is
    the form for a body that stays where it is. It runs again on a trip, so it must not consume its batch. Undone are
    parameters, buffers, optimizer states, averages, a gradient scaler, torch's learning-rate schedulers, accelerate's
    place in an accumulation and the randomness of torch, Python and NumPy, explicit generators included; not what else
    the step changes, such as counters of its own. Gradients that the step adds to are put back: they are copied then,
    which takes their memory once more while the step runs. Gradients that it drops first are dropped. Threads take
    turns.

    A step that raises because of a non-finite value is explained, too. It is repeated where something speaks of one: a
    bad value in a frame that the exception passed through, in the model or the batch, its words, or the code that
    raised it. Any other exception passes as it is, and nothing runs twice.

    Where copies are kept, they are of the parameters that the optimizers hold and that train. The first step is copied
    (where the device has room), for it shows what else a step writes to. A frozen parameter is copied once an operator
    is about to write to it, and from then on: alone, if that comes before the optimizers move, as a counter does. What
    is written after they have moved, an average in a frozen module or their own parameters (pruning, normalising), is
    copied from then on with all that they change. A parameter that is only read costs no copy.

    Args:
        model: A module or several.
        optimizer: What steps inside the callable, one or several of any class with a `step` method; None for a
            loop that updates by hand. Without it, torch's are noticed when they step.
        statistics_every: Steps between full statistics of every layer (`layers` after such a step); 0 for never.
            Modules that come or go are noticed then, and at `attach`.
        incidents: Folder for `step-XXXXXXXX` folders; None writes none.
        records: Folder for `metrics.jsonl`, as a run of the harness has it, for `shadowlab health`, `inspect`, `report`
            and `tensorboard`: loss, gradient norm, learning rate and time of each step, statistics where they are due,
            what the live health rules find in them (`findings`; logged as `diagnostics.watch`). None writes none. Of
            several processes each is given it, the first writes.
        averages: Tensors of weight averages that the step updates, any shape. They are checked after every step,
            for which everything is copied before it; see `safe_averages`.
        safe_averages: Averages whose update keeps them finite where the parameters are (a decay between 0 and 1,
            not in float16). They are undone, and checked where copies are kept, but cause no copy.
        undo: `auto` copies parameters and optimizer state before the first step, and before others only where the
            optimizer could make non-finite values of finite gradients (`undo_reason` says why: half parameters, an
            unknown optimizer, an odd eps, several optimizers) or the loop writes to parameters after it: one copy
            in time and memory. `always` and `never` do as they say.
        max_consecutive_skips: A gradient scaler that skips this many steps in a row is a finding.
        accelerator: accelerate's `Accelerator`, whose position in an accumulation is put back. Without it, it is
            found where the step's code names it; without `optimizer`, it gives those that it has prepared.
        generators: of random numbers (torch.Generator, numpy.random.Generator, random.Random) that the step draws
            from. Without them those are found that the step's closure, its methods' objects, the globals that it
            names, its models or the batch hold.
        policy: what a non-finite value ends in. `raise`: the error. `skip`: everything is put back as it was before
            the step, its incident is written, a RuntimeWarning names the origin, and the loop goes on, for those
            who must; the step is counted in `num_left_out` and returns None. A step that cannot be undone raises.
        max_skipped_in_a_row: So many steps in a row are left out under `skip`; the next one raises.
        contracts: ask each step what `diagnostics.contracts.CONTRACTS` lists. What is broken is in `findings`, in the
            records and logged, each thing once; with `raise` the first alarm ends its step with a `ContractError`.

    Raises:
        TypeError: `model`, `optimizer`, `accelerator` or one of `generators` is something else.
        ValueError: another argument has no such value.
        OSError: `records` cannot be made.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: Any = None,
        *,
        statistics_every: int = 50,
        incidents: Path | str | None = "incidents",
        records: Path | str | None = None,
        averages: Iterable[Tensor] = (),
        safe_averages: Iterable[Tensor] = (),
        undo: When = "auto",
        max_consecutive_skips: int = 20,
        accelerator: Any = None,
        generators: Iterable[Any] = (),
        policy: Literal["raise", "skip"] = "raise",
        max_skipped_in_a_row: int = 3,
        contracts: bool | Literal["raise"] = True,
    ) -> None:
        """Ready to watch; nothing is hooked until a step runs. Warns of an eps that the dtype of its parameters rounds
        to zero (RuntimeWarning), also where such parameters or an optimizer come later.
        """
        _check(undo, policy, contracts, statistics_every, max_consecutive_skips, max_skipped_in_a_row)
        if optimizer is None and accelerator is not None:
            optimizer = list(getattr(accelerator, "_optimizers", ()))
        models, optimizers = models_in(model), optimizers_in(optimizer)
        guarded = Guarded(models, optimizers, list(averages), list(safe_averages))
        self._every = statistics_every
        journal = None if records is None else Journal(Path(records), guarded)
        self._watched = Watched(
            guarded=guarded,
            policy=Policy(undo, guarded),
            skips=Skips(limit=max_consecutive_skips),
            left_out=LeftOut(limit=max_skipped_in_a_row if policy == "skip" else 0),
            layer_statistics=[LayerStatistics(one) for one in models],
            adopts=not optimizers,
            incidents=None if incidents is None else Path(incidents),
            given=named(generators, accelerator),
            contracts=KeptContracts(guarded, journal, is_asked=bool(contracts), raises=contracts == "raise"),
            journal=journal,
        )
        self._found = Surroundings()
        self._attached = True
        self._num_steps = 0

    @property
    def layers(self) -> dict[str, dict[str, TensorStatistics]]:
        """Statistics of the last step that measured them, as `LayerStatistics.collect` gives them. A step that trips
        is measured in its repetition, as far as that comes."""
        return self._watched.layers

    @layers.setter
    def layers(self, layers: dict[str, dict[str, TensorStatistics]]) -> None:
        self._watched.layers = layers

    @property
    def findings(self) -> list[Finding]:
        """What broken contracts, and the live health rules in the records, have shown so far, each thing once; the
        rules need `records`."""
        journal = self._watched.journal
        return self._watched.contracts.findings if journal is None else journal.findings

    @property
    def incidents(self) -> Path | None:
        """Where incidents are written; None for nowhere."""
        return self._watched.incidents

    @incidents.setter
    def incidents(self, folder: Path | None) -> None:
        self._watched.incidents = folder

    @property
    def on_trip(self) -> Callable[[], None] | None:
        """Called before a step that tripped is repeated, which takes many times as long."""
        return self._watched.on_trip

    @on_trip.setter
    def on_trip(self, call: Callable[[], None] | None) -> None:
        self._watched.on_trip = call

    @property
    def undo_reason(self) -> str | None:
        """Why parameters and state are copied before each step; None where they are not."""
        return self._watched.policy.reason

    @property
    def num_skipped(self) -> int:
        """Steps that a gradient scaler left out, in all. Set it on resume."""
        return self._watched.skips.total

    @num_skipped.setter
    def num_skipped(self, number: int) -> None:
        self._watched.skips.total = number

    @property
    def skips_in_a_row(self) -> int:
        """Steps that a gradient scaler has left out just now. Set it on resume."""
        return self._watched.skips.in_a_row

    @skips_in_a_row.setter
    def skips_in_a_row(self, number: int) -> None:
        self._watched.skips.in_a_row = number

    @property
    def num_left_out(self) -> int:
        """Steps that tripped and were left out, in all (`policy="skip"`). Set it on resume."""
        return self._watched.left_out.total

    @num_left_out.setter
    def num_left_out(self, number: int) -> None:
        self._watched.left_out.total = number

    def attach(self) -> None:
        """Watch again (the state after construction)."""
        self._attached = True
        self._watched.guarded.forget_steps()
        self._watched.guarded.renew()
        for layers in self._watched.layer_statistics:
            layers.attach()

    def detach(self) -> None:
        """Take every hook off; `step` only calls its callable until `attach`."""
        self._attached = False
        self._watched.contracts.detach()
        self._watched.raise_unexplained()
        for layers in self._watched.layer_statistics:
            layers.detach()

    def is_due(self, step_index: int) -> bool:
        """Whether the step with this 0-based index measures every layer."""
        return self._every > 0 and (step_index == 0 or (step_index + 1) % self._every == 0)

    @called_with_a_step
    def step(self, step: Callable[[], Result], *, batch: Any = None, step_index: int | None = None) -> Result:
        """Run one step; returns what it returns.

        Args:
            step: is called, and called again on a trip.
            batch: names the step's tensors and samples, see `explain`.
            step_index: 0-based number of the step; without it steps are counted from 0.

        Raises:
            NonFiniteError: unless `policy` bears it, a loss that was differentiated, a gradient, norm, buffer,
                parameter, state or average is not finite, the step raised because something is not (that exception is
                the `__cause__`), or a gradient scaler collapsed. Its text says whether everything is as before the
                step, as it is but for what no watch can foresee: an optimizer that steps a second time in the
                callable, or writes outside of it.
            RuntimeError: inside a step of the same watch.
        """
        attempt = Attempt()
        for attempt in self._attempts(batch, step_index, partial(around_callable, step, batch)):
            with attempt:
                attempt.result = step()
        result: Result = attempt.result
        return result

    def attempts(self, *, batch: Any = None, step_index: int | None = None) -> Attempts:
        """One step, for a loop whose body stays where it is.

            for batch in loader:
                for attempt in watch.attempts(batch=batch):
                    with attempt:
                        optimizer.zero_grad()
                        loss = model(batch).square().mean()
                        loss.backward()
                        optimizer.step()
                scheduler.step()

        A healthy step is one attempt. On a trip the `for` runs the body again, under tracing, and the second attempt
        raises. `continue` may leave the body; after `break` or `return` a trip that is only found at the end of the
        body cannot be repeated: the step is undone, and the next step of the watch (or `detach`) raises what is known,
        or leaves it out where `policy` says so.

        Args:
            batch, step_index: as of `step`.

        Raises:
            NonFiniteError, RuntimeError: as `step`, at the end of the body.
            TypeError: the body does not run inside `with attempt:`.
        """
        return self._attempts(batch, step_index, partial(around_body, sys._getframe(1), batch))

    def _attempts(self, batch: Any, step_index: int | None, look: Callable[..., Surroundings]) -> Attempts:
        """look: finds what the step's code has at hand."""
        watched = self._watched
        watched.raise_unexplained()
        index = self._num_steps if step_index is None else step_index
        self._num_steps = index + 1
        if not self._attached:
            return Attempts(Attempt(), watched)
        due = self.is_due(index)
        is_thorough = due or watched.guarded.is_new
        found = look(is_thorough=is_thorough)
        if is_thorough:
            self._found = found
        surroundings = Surroundings()
        for one in (found, self._found, watched.given):
            surroundings.add(one)
        first = First(watched, batch, index, surroundings, is_due=due)
        return Attempts(first, watched)

    def metric(self, name: str, value: float, *, kept: bool, higher_is_better: bool | None = None) -> None:
        """A result by which the loop chooses its best checkpoint: whether it chooses the better one.

        Args:
            kept: whether the loop took this result for the best so far.
            higher_is_better: None: as the name says (`accuracy`, `loss`), if it does.

        Raises:
            ContractError: it did not, and the watch raises.
        """
        last = max(0, self._num_steps - 1)
        self._watched.contracts.add_metric(last, name, float(value), higher_is_better, kept)

    def __enter__(self) -> NoReturn:
        raise TypeError(f"a watch is no context manager, for a step may have to run twice; {BOTH}")

    def __exit__(self, *_: object) -> None: ...

    def note(self, *, loss: float, grad_norm: float) -> None:
        """For a loop that reads its loss and gradient norm before `optimizer.step()` anyway.

        Nothing more is read, but for one flag where the model has buffers. A number that is not finite ends the
        step here; the watch raises what comes of it.

        Raises:
            NonFiniteError: outside a watched step, one of them is not finite.
        """
        if self._watched.running is not None:
            self._watched.running.note(loss, grad_norm)
            return
        phase = noted_phase(loss, grad_norm)
        if phase is not None:
            witness, fix = {"seen": noted_text(loss, grad_norm)}, "attach the watch to learn where it was born"
            raise NonFiniteError(Verdict(phase, None, "unknown", witness=witness, fix=fix))


def _check(
    undo: str, policy: str, contracts: Any, statistics_every: int, max_consecutive_skips: int, max_skipped: int
) -> None:
    for name, value, allowed in (("undo", undo, get_args(When)), ("policy", policy, ("raise", "skip"))):
        if value not in allowed:
            raise ValueError(f"{name}: one of {', '.join(allowed)}, not {value!r}")
    if contracts not in (True, False, "raise"):
        raise ValueError(f"contracts: True, False or 'raise', not {contracts!r}")
    if statistics_every < 0 or min(max_consecutive_skips, max_skipped) < 1:
        raise ValueError("statistics_every: 0 or more; max_consecutive_skips, max_skipped_in_a_row: 1 or more")
