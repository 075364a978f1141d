"""One training step under op-level tracing: where the first non-finite value on the path to a sink was born."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from diagnostics.modules import eagerly, models_in, optimizers_in, unwrapped
from diagnostics.ranks import num_ranks
from diagnostics.tensors import bad_flags, is_inexact, strided, tensors_in
from diagnostics.tracing.description import Facts
from diagnostics.tracing.events import Event
from diagnostics.tracing.frames import recording_creations
from diagnostics.tracing.origin import Origin, Sink, find_origin
from diagnostics.tracing.provenance import harmful, is_legitimate, nodes_in
from diagnostics.tracing.step_batch import StepBatch
from diagnostics.tracing.step_context import StepContext, prefixes
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
    """Run `step()` once under tracing (contract C4).

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
        what `step` raises, where no finding explains it; else the finding's witness tells it as `raised`. Weights are
        changed as the step changes them.
    """
    explanation = Explanation(models_in(model), optimizers_in(optimizer), batch)
    try:
        return explanation.run(step)
    finally:
        explanation.forget()


class Explanation:
    """The tracing of one step. `run` may be called once. Afterwards `culprit` is the call to be reproduced."""

    def __init__(self, models: list[nn.Module], optimizers: list[Any], batch: Any) -> None:
        self._models = [unwrapped(model) for model in models]
        self._optimizers = optimizers
        self._context = StepContext(models, self._optimizers, self._note_inputs, self._note_roots)
        self._tracer = Tracer(self._context)
        self._sinks: list[Sink] = []
        self._parameters: dict[str, nn.Parameter] = {}
        for model, prefix in zip(self._models, prefixes(models), strict=True):
            for name, parameter in _named(model.named_parameters()):
                if not is_lazy(parameter):
                    self._parameters[prefix + name if name in self._parameters else name] = parameter
        self._parameters |= self._parameters_beside_models()
        self._named_ids = {id(parameter): name for name, parameter in self._parameters.items()}
        self._hooks = ExitStack()
        self._names = dict(self._name_storages())
        self._gradients: set[int] = set()  # storages of parameters' gradients
        self._batch = StepBatch(batch)
        self._add_leaves(self._batch.tensors)
        self.culprit: Any = None
        self._stop: type[BaseException] | None = None
        self._settled: Verdict | None = None
        self.tolerates_scaler = True  # False: a gradient scaler's overflows are findings, too

    # Before the step

    def _add_leaves(self, batch: list[tuple[str, Tensor]]) -> None:
        add, memory = self._tracer.add_leaf, self._tracer.memory
        for name, parameter in self._parameters.items():
            add("parameter", name, parameter, infinity_is_harm=True)
            if parameter.grad is not None:
                add("gradient", f"{name}.grad", parameter.grad, infinity_is_harm=True)
                self._note_gradient(parameter.grad)
        for name, buffer in self._buffers():
            add("buffer", name, buffer, infinity_is_harm=False)
        for model in self._models:
            for path, module in model.named_modules():
                for key, value in vars(module).items():
                    if not key.startswith("_") or isinstance(value, Tensor):  # torch's own dictionaries begin with _
                        for tensor in tensors_in(value):
                            add("attribute", f"{path}.{key}".lstrip("."), tensor, infinity_is_harm=False)
        for name, value in self._states():
            add("optimizer state", name, value, infinity_is_harm=value.numel() > 1)
        for name, tensor in batch:
            add("data", name, tensor, infinity_is_harm=False)
            values = strided(tensor)
            if values is not None:
                memory.storage(values).from_batch = True

    def _parameters_beside_models(self) -> dict[str, nn.Parameter]:
        """What optimizers train and no listed model holds. Another model gives better names when it is called."""
        known = {id(parameter) for parameter in self._parameters.values()}
        found = {}
        for optimizer in self._optimizers:
            for g, group in enumerate(getattr(optimizer, "param_groups", [])):
                for i, parameter in enumerate(group["params"]):
                    if id(parameter) not in known:
                        found[f"param_groups[{g}][{i}]"] = parameter
        return found

    def _adopt(self, model: nn.Module) -> None:
        """A model that the caller did not list is called: its parameters are sinks, too."""
        prefix = self._context.module_name(model)
        for own, parameter in _named(model.named_parameters()):
            name = f"{prefix}.{own}".lstrip(".")
            known = self._named_ids.get(id(parameter))
            if known == name:
                continue
            self._parameters.pop(known or name, None)
            self._parameters[name] = parameter
            self._named_ids[id(parameter)] = name
            values = strided(parameter)
            if values is not None:
                self._names[values.untyped_storage()._cdata] = name
            if known is None:
                self._tracer.add_leaf("parameter", name, parameter, infinity_is_harm=True)
                self._watch_gradient(parameter)

    def _watch_gradient(self, parameter: nn.Parameter) -> None:
        if parameter.requires_grad and parameter.is_leaf:
            self._hooks.callback(parameter.register_post_accumulate_grad_hook(self._note_new_gradient).remove)

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        taken = set(self._parameters)
        for model, prefix in zip(self._models, prefixes(self._models), strict=True):
            for name, buffer in _named(model.named_buffers()):
                unique = prefix + name if name in taken else name
                taken.add(unique)
                yield unique, buffer

    def _states(self) -> Iterator[tuple[str, Tensor]]:
        """Optimizer states as `<parameter>.<state>`."""
        states = [item for one in self._optimizers for item in getattr(one, "state", {}).items()]
        for i, (parameter, state) in enumerate(states):
            if isinstance(state, Mapping):
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        yield f"{self._named_ids.get(id(parameter), i)}.{key}", value

    def _name_storages(self) -> Iterator[tuple[int, str]]:
        for name, tensor in [*self._buffers(), *self._parameters.items()]:
            values = strided(tensor)
            if values is not None:
                yield values.untyped_storage()._cdata, name

    def _note_inputs(self, model: nn.Module, inputs: Iterable[Any]) -> None:
        with _disable_current_modes():
            if not self._models:
                self._adopt(model)
            for tensor in tensors_in(inputs):
                values = strided(tensor)
                if values is None:
                    continue
                if self._batch.size is None and values.ndim:
                    self._batch.size = len(values)
                if self._tracer.memory.known(values) is None:
                    self._tracer.add_leaf("data", None, values, infinity_is_harm=False)
                self._tracer.memory.storage(values).from_batch = True

    def _note_gradient(self, gradient: Tensor) -> None:
        values = strided(gradient)
        if values is not None:
            self._tracer.memory.storage(values).from_gradient = True
            self._gradients.add(values.untyped_storage()._cdata)

    # The step

    def run(self, step: Callable[[], Any], stop: type[BaseException] | None = None) -> Verdict | None:
        """Trace a step.

        stop: raised by a caller that ends the step early; what was seen until then is judged. It is also raised here
            once the origin is known beyond doubt, for the rest of the step teaches nothing.
        """
        self._stop = stop
        failure: Exception | None = None
        result = None
        with ExitStack() as stack:
            stack.enter_context(self._context.active())
            stack.enter_context(self._hooks)
            for parameter in self._parameters.values():
                self._watch_gradient(parameter)
            stack.enter_context(recording_creations(lambda: self._context.module))
            stack.enter_context(eagerly())
            # Anomaly mode tells of every exception in backward, ours that ends it included.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Error detected in")
            try:
                with self._tracer:
                    result = step()
            except Exception as error:  # the finding may explain it; else it is raised again below
                failure = error
            except BaseException as error:
                if stop is None or not isinstance(error, stop):
                    raise
        verdict = self._settled or self._judged(result, failure)
        if failure is None:
            return verdict
        if verdict is None:
            raise failure
        raised = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
        return replace(verdict, witness={**verdict.witness, "raised": raised})

    def _judged(self, result: Any, failure: Exception | None) -> Verdict | None:
        """The verdict at the end of the step, whether it came to its end or failed."""
        self._collect_sinks(result)
        verdict = self._verdict()
        if verdict is not None or failure is None:
            return verdict
        harm = [event for event in self._tracer.events[1:] if event.leaf is None and event.value]
        if harm:
            self._sinks.append(Sink("failure", type(failure).__name__, {harmful(harm[-1].number)}))
        return self._verdict()

    def forget(self) -> None:
        """Let go of tensors and of the step: context and hooks refer back here, and a cycle lives until collected."""
        self._context.forget()
        self._tracer.forget()
        self._sinks.clear()
        self.culprit = None

    def _note_new_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        name = self._named_ids[id(parameter)]
        with _disable_current_modes():
            self._note_gradient(parameter.grad)
            values = strided(parameter.grad)
            if values is not None:
                self._names[values.untyped_storage()._cdata] = name
            self._add_sink("gradient", name, parameter.grad)
            self._settle()

    def _note_roots(self, roots: list[Tensor]) -> None:
        with _disable_current_modes():
            for root in roots:
                self._add_sink("loss" if self._context.scale is None else "scaled loss", None, root)
            self._settle()

    def _settle(self) -> None:
        """Stop tracing where no later operator can change the verdict: the earliest harm of all has reached a sink."""
        first = self._tracer.first_harm
        if self._settled is not None or first is None or not self._sinks or self._context.scale is not None:
            return
        if self._batch.is_sequence or len(self._sinks) > _TRIED_SINKS:
            return
        origin = find_origin(self._tracer.events, self._sinks, scale=None)
        if origin is not None and origin.event.number <= first:
            self._settled = self._describe(origin)
            self._tracer.is_finished = True
            if self._stop is not None and num_ranks() == 1:  # other ranks wait for this one's collectives
                raise self._stop

    # After the step

    def _add_sink(self, kind: str, name: str | None, tensor: Tensor) -> None:
        values = strided(tensor)
        if values is None or not is_inexact(values) or not bad_flags([values])[0]:
            return
        nodes = nodes_in([self._tracer.memory.shadow(values)])
        if not nodes:
            event = Event(len(self._tracer.events), "unseen", None, leaf="unseen", name=name)
            self._tracer.events.append(event)
            nodes = {harmful(event.number)}
        self._sinks.append(Sink(kind, name, nodes))

    def _collect_sinks(self, result: Any) -> None:
        for tensor in tensors_in(result):
            if tensor.numel() == 1 or tensor is result:
                self._add_sink("loss", None, tensor)
        for number in _numbers_in(result):
            read = [nodes for value, nodes in self._tracer.bad_reads if value == str(number)]
            if read:
                self._sinks.append(Sink("loss", None, set(read[-1])))
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._add_sink("gradient", name, parameter.grad)
            self._add_sink("parameter", name, parameter)
        for kind, tensors in (("buffer", self._buffers()), ("optimizer state", self._states())):
            for name, tensor in tensors:
                self._add_sink(kind, name, tensor)
        shapes = {tuple(parameter.shape) for parameter in self._parameters.values()}
        for event in self._tracer.events[1:]:
            if event.place is None or event.leaf is not None:
                continue
            if self._is_clip_norm(event):
                self._sinks.append(Sink("clip norm", None, {harmful(event.number)}))
            elif self._is_average(event, shapes):
                self._sinks.append(Sink("average", None, {harmful(event.number)}))
        self._sinks.sort(key=lambda sink: "loss" not in sink.kind)  # paths to the loss are the easiest to read
        legitimate_kinds = ("buffer", "optimizer state")
        for sink in self._sinks:
            if sink.kind in legitimate_kinds:
                sink.nodes = {node for node in sink.nodes if not is_legitimate(node)}

    @staticmethod
    def _is_clip_norm(event: Event) -> bool:
        place = event.place
        if place is None or event.shape != () or place.in_backward or place.in_optimizer or place.in_model:
            return False
        by_hand = event.from_gradient and event.scales_gradients and "scaler" not in place.marks
        return "clip" in place.marks or by_hand

    def _is_average(self, event: Event, shapes: set[tuple[int, ...]]) -> bool:
        place = event.place
        if place is None or place.in_backward or place.in_optimizer or place.in_model:
            return False
        is_alive = self._tracer.memory.is_alive
        if not any(is_alive(storage) for storage in event.written):
            return False
        succeeds = event.updates_old or not all(is_alive(storage) for storage in event.replaces)
        return "ema" in place.marks or (place.milestone == "optimizer" and event.shape in shapes and succeeds)

    def _verdict(self) -> Verdict | None:
        scale = self._context.scale if self.tolerates_scaler else None
        origin = find_origin(self._tracer.events, self._sinks, scale=scale)
        return None if origin is None else self._describe(origin)

    def _describe(self, origin: Origin) -> Verdict:
        self.culprit = origin.event.call
        facts = Facts(
            events=self._tracer.events,
            batch=self._batch,
            names=self._names,
            gradients=self._gradients,
            parameter_names=set(self._parameters),
            shapes={tuple(parameter.shape) for parameter in self._parameters.values()},
            num_model_calls=self._context.num_model_calls,
        )
        return facts.describe(origin)


def _numbers_in(value: Any) -> Iterator[float]:
    """NaN and Inf among the numbers in nested containers."""
    if isinstance(value, float) and not math.isfinite(value):  # NumPy's float64 is one
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers_in(item)


def _named(pairs: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in pairs:
        yield name.replace("_orig_mod.", ""), value
