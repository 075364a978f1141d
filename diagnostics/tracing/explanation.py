"""One training step under op-level tracing: where the first non-finite value on the path to a sink was born."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from diagnostics.modules import eagerly, models_in, optimizers_in
from diagnostics.ranks import num_ranks
from diagnostics.tensors import strided, tensors_in
from diagnostics.tracing.calls import OperatorCall
from diagnostics.tracing.description import Facts
from diagnostics.tracing.frames import recording_creations
from diagnostics.tracing.origin import Origin, find_origin
from diagnostics.tracing.sinks import Sinks
from diagnostics.tracing.step_batch import StepBatch, input_values
from diagnostics.tracing.step_context import StepContext
from diagnostics.tracing.step_state import StepState
from diagnostics.tracing.tracer import Tracer
from diagnostics.verdict import Verdict

_TRIED_SINKS = 8


def explain(
    step: Callable[[], Any],
    *,
    model: nn.Module | Sequence[nn.Module] | None = None,
    optimizer: Any = None,
    batch: Any = None,
) -> Verdict | None:
    """Run `step()` once under tracing, and say where its first harmful NaN or Inf was born.

    Args:
        step: forward, backward, and as much of clipping, optimizer step and averaging as the caller's loop does. It
            may return the loss (a tensor, a number, or a container whose scalars are losses).
        model: a module or several. Without it every module with parameters counts as model.
        optimizer: names its states. One or several, of any class with a `step` method.
        batch: names tensors (mapping or nested sequences), so that a bad sample can be named; a sequence of B strings
            in it gives the samples' ids, B being the tensors' first dimension.

    Returns:
        The origin, or None where no non-finite value reached the returned loss, a parameter's gradient, the clip
        norm, a parameter, a buffer, an optimizer state or a weight average.

    Raises:
        TypeError: `model` or `optimizer` is neither one nor several.
        Exception: what `step` raises, `SystemExit` too, where no origin explains it; else the verdict's witness has it
            as `raised`. Weights are changed as the step changes them.
    """
    explanation = Explanation(models_in(model), optimizers_in(optimizer), batch)
    try:
        return explanation.run(step)
    finally:
        explanation.forget()


class Explanation:
    """The tracing of one step, once: by `run`, or inside `tracing`, after which `verdict` is asked."""

    culprit: OperatorCall | None
    """After the verdict the call to be reproduced, with its operands; None where there is none or it is too large."""

    tolerates_scaler: bool
    """Whether overflow by which a gradient scaler finds its scale is no harm."""

    def __init__(self, models: list[nn.Module], optimizers: list[Any], batch: Any) -> None:
        self._has_models = bool(models)
        self._context = StepContext(models, optimizers, self._note_inputs, self._note_roots)
        self._tracer = Tracer(self._context)
        self._state = StepState(models, optimizers)
        self._batch = StepBatch(batch)
        self._sinks = Sinks(self._tracer)
        self._hooks = ExitStack()
        self._stop: type[BaseException] | None = None
        self._settled: Verdict | None = None
        self.culprit = None
        self.tolerates_scaler = True
        self._add_leaves()

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Of the models and of optimizers that train others, by the names that a verdict gives them."""
        return self._state.parameters

    # Before the step

    def _add_leaves(self) -> None:
        add = self._tracer.add_leaf
        for name, parameter in self._state.parameters.items():
            add("parameter", name, parameter, infinity_is_harm=True)
            if parameter.grad is not None:
                add("gradient", f"{name}.grad", parameter.grad, infinity_is_harm=True)
                self._note_gradient(None, parameter.grad)
        for name, gradient in self._state.withheld_gradients():
            add("gradient", f"{name}.grad", gradient, infinity_is_harm=True)
            self._note_gradient(None, gradient)
        for name, buffer in self._state.buffers():
            add("buffer", name, buffer, infinity_is_harm=False)
        for name, tensor in self._state.attributes():
            add("attribute", name, tensor, infinity_is_harm=False)
        for name, value in self._state.optimizer_states():
            add("optimizer state", name, value, infinity_is_harm=value.numel() > 1)
        for name, tensor in self._batch.tensors:
            add("data", name, tensor, infinity_is_harm=False)
            values = strided(tensor)
            if values is not None:
                self._tracer.memory.storage(values).from_batch = True

    # During the step

    def run(self, step: Callable[[], Any]) -> Verdict | None:
        """Trace a step; its verdict.

        Raises:
            Exception: see `explain`.
        """
        result, failure = None, None
        try:
            with self.tracing():
                result = step()
        except (Exception, SystemExit) as error:  # an origin may explain it; else it is raised again below
            failure = error
        verdict = self.verdict(result, failure)
        if verdict is None and failure is not None:
            raise failure
        return verdict

    @contextmanager
    def tracing(self, stop: type[BaseException] | None = None) -> Iterator[None]:
        """The step runs inside; `verdict` follows.

        Args:
            stop: ends the step early and is swallowed here: what was seen until then is judged. It is also raised in
                the step once the origin is known beyond doubt, for the rest of the step teaches nothing.
        """
        self._stop = stop
        with ExitStack() as stack:
            stack.enter_context(self._context.active())
            stack.enter_context(self._hooks)
            for parameter in self._state.parameters.values():
                self._watch_gradient(parameter)
            stack.enter_context(recording_creations(lambda: self._context.module))
            stack.enter_context(eagerly())
            # Anomaly mode warns of every exception in backward, ours that ends it included.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Error detected in")
            try:
                with self._tracer:
                    yield
            except BaseException as error:
                if stop is None or not isinstance(error, stop):
                    raise

    def verdict(self, result: Any = None, failure: BaseException | None = None) -> Verdict | None:
        """The origin of what is not finite; None where there is none.

        Args:
            result: what the step returned. failure: what it raised; kept in the verdict's witness as `raised`.
        """
        verdict = self._settled or self._judged(result, failure)
        if failure is None or verdict is None:
            return verdict
        raised = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
        return replace(verdict, witness={**verdict.witness, "raised": raised})

    @property
    def generators(self) -> list[torch.Generator]:
        """Of random numbers, that operators of the step were given."""
        return list(self._tracer.generators.values())

    def forget(self) -> None:
        """Let go of tensors and of the step: context and hooks refer back here, and a cycle lives until collected."""
        self._context.forget()
        self._tracer.forget()
        self._sinks.found.clear()
        self.culprit = None

    def _watch_gradient(self, parameter: nn.Parameter) -> None:
        if parameter.requires_grad and parameter.is_leaf:
            self._hooks.callback(parameter.register_post_accumulate_grad_hook(self._note_new_gradient).remove)

    def _note_inputs(self, model: nn.Module, inputs: Iterable[Any]) -> None:
        with _disable_current_modes():
            if not self._has_models:
                for name, parameter in self._state.adopt(model, self._context.module_name(model)):
                    self._tracer.add_leaf("parameter", name, parameter, infinity_is_harm=True)
                    self._watch_gradient(parameter)
            entering = [values for tensor in tensors_in(inputs) if (values := input_values(tensor)) is not None]
            self._batch.learn(entering)
            for values in entering:
                if self._tracer.memory.known(values) is None:
                    self._tracer.add_leaf("data", None, values, infinity_is_harm=False)
                self._tracer.note_input(values)

    def _note_gradient(self, name: str | None, gradient: Tensor) -> None:
        values = self._state.note_gradient(name, gradient)
        if values is not None:
            self._tracer.memory.storage(values).from_gradient = True

    def _note_new_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        name = self._state.name_of(parameter)
        with _disable_current_modes():
            self._note_gradient(name, parameter.grad)
            self._sinks.add("gradient", name, parameter.grad)
            self._settle()

    def _note_roots(self, roots: list[Tensor]) -> None:
        with _disable_current_modes():
            for root in roots:
                self._sinks.add("loss" if self._context.scale is None else "scaled loss", None, root)
            self._settle()

    def _settle(self) -> None:
        """Stop tracing where no later operator can change the verdict: the earliest harm of all has reached a sink."""
        first, sinks = self._tracer.first_harm, self._sinks.found
        if self._settled is not None or first is None or not sinks or self._context.scale is not None:
            return
        if self._batch.is_sequence or len(sinks) > _TRIED_SINKS:
            return
        origin = find_origin(self._tracer.events, sinks, scale=None)
        if origin is not None and origin.event.number <= first:
            self._settled = self._describe(origin)
            self._tracer.is_finished = True
            if self._stop is not None and num_ranks() == 1:  # other ranks wait for this one's collectives
                raise self._stop

    # After the step

    def _judged(self, result: Any, failure: BaseException | None) -> Verdict | None:
        """The verdict at the end of the step, whether it came to its end or failed."""
        self._sinks.collect(result, self._state)
        verdict = self._verdict()
        if verdict is not None or failure is None:
            return verdict
        self._sinks.add_failure(failure)
        return self._verdict()

    def _verdict(self) -> Verdict | None:
        scale = self._context.scale if self.tolerates_scaler else None
        origin = find_origin(self._tracer.events, self._sinks.found, scale=scale)
        return None if origin is None else self._describe(origin)

    def _describe(self, origin: Origin) -> Verdict:
        self.culprit = origin.event.examination.call
        facts = Facts(self._tracer.events, self._batch, self._state, self._context.num_model_calls)
        return facts.describe(origin)
