"""Where in a training step the program is: module, phase so far, optimizer, autograd."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import _disable_current_modes

from diagnostics.modules import unwrapped
from diagnostics.patching import before_backward, before_grad, before_scale, is_closure, replaced
from diagnostics.tensors import tensors_in
from diagnostics.tracing.frames import creation_record, hook_line, library_line, marks, user_line

Milestone = Literal["start", "model", "backward", "optimizer"]


@dataclass(frozen=True)
class Place:
    """Where an operator ran."""

    milestone: Milestone
    """The last part of the step that was finished or begun before it."""
    in_backward: bool
    in_model: bool
    in_optimizer: bool
    marks: frozenset[str]
    """The well-known functions it ran inside, see `frames.marks`."""
    module: str | None
    """Dotted name of the innermost module that was being called."""
    source: str | None
    """`path:line`: the user's innermost line; for a backward operator that of the forward call."""
    issued_at: str | None
    """The innermost line where that differs from `source`: the call of backward, or inside a library that was called.
    """
    num_model_calls: int = 0
    """How often the model had been called before."""
    in_hook: bool = False
    """Autograd runs a hook of the user's, which has lines of its own."""
    node: str | None = None
    """Name of the autograd node that is running, such as `SqrtBackward0`."""


@dataclass(frozen=True)
class _Call:
    """A module that is being called."""

    name: str
    is_model: bool
    task: int
    """Autograd's graph task when the call began; -1 outside backward."""


def prefixes(models: list[nn.Module]) -> list[str]:
    """What goes before the names in each of several models where an earlier model has the same: `Net.`, `Net_2.`, or
    nothing for the first one."""
    found: list[str] = []
    for i, model in enumerate(models):
        kind = type(unwrapped(model)).__name__
        found.append("" if i == 0 else f"{kind}." if f"{kind}." not in found else f"{kind}_{i}.")
    return found


class StepContext:
    """Follows a step through global hooks on modules and optimizers. `active` puts them on and takes them off.

    Args:
        on_model_call: gets a model and what enters it.
        on_backward: gets what backward starts from, a loss whether the step returns it or not; any shape.

    Attributes:
        milestone: see `Place`.
        scale: of a gradient scaler that was used; None without one.
        num_model_calls: how often the model was called so far.
        num_open: calls of models that have not returned.
    """

    def __init__(
        self,
        models: list[nn.Module],
        optimizers: list[Any],
        on_model_call: Callable[[nn.Module, Iterable[Any]], None],
        on_backward: Callable[[list[Tensor]], None],
    ) -> None:
        self._on_model_call, self._on_backward = on_model_call, on_backward
        self.milestone: Milestone = "start"
        self.scale: float | None = None
        self.num_model_calls = 0
        self._optimizers = optimizers
        self._optimizer_depth = 0
        self._calls: list[_Call] = []
        self.num_open = 0
        self._names: dict[int, str] = {}
        self._listed = bool(models)
        self._model_ids: set[int] = set()
        self._kept: list[nn.Module] = []  # ids in `_names` stay valid
        taken: set[str] = set()
        for model, prefix in zip(models, prefixes(models), strict=True):
            self._model_ids.update(id(module) for module in model.modules())
            self._name(unwrapped(model), prefix, taken)

    def module_name(self, module: nn.Module) -> str:
        """Dotted name in its model; one that is not in a listed model is named by the class of its root."""
        if id(module) not in self._names:
            bare = unwrapped(module)
            kind = type(bare).__name__
            self._name(bare, f"{kind}.", {name for name, _ in bare.named_modules()})
            self._names.setdefault(id(module), self._names[id(bare)])
            self._kept.append(module)
        return self._names[id(module)]

    def _name(self, root: nn.Module, prefix: str, taken: set[str]) -> None:
        self._kept.append(root)
        for name, module in root.named_modules():
            plain = name.replace("_orig_mod.", "")
            self._names.setdefault(id(module), (prefix + plain).rstrip(".") if plain in taken else plain)
        taken.update(name.replace("_orig_mod.", "") for name, _ in root.named_modules())

    @property
    def in_model(self) -> bool:
        """Whether a model is being called."""
        return self.num_open > 0

    @property
    def computes(self) -> bool:
        """Whether the model or autograd is at work."""
        return self.in_model or torch._C._current_graph_task_id() != -1

    @property
    def is_outside(self) -> bool:
        """Whether the loop itself is at work: not the model, autograd or an optimizer."""
        return self.num_open == 0 and self._optimizer_depth == 0 and torch._C._current_graph_task_id() == -1

    @property
    def module(self) -> str | None:
        """Dotted name of the innermost module that is being called."""
        return self._calls[-1].name if self._calls else None

    def place(self) -> Place:
        """Of the operator that is being dispatched."""
        task = torch._C._current_graph_task_id()
        recomputed = bool(self._calls) and self._calls[-1].task != -1
        in_backward = task != -1 and not recomputed
        source, module = user_line(), self.module
        issued_at = source if in_backward else library_line()
        hook = hook_line() if in_backward else None
        node = torch._C._current_autograd_node()
        if in_backward:
            record = creation_record(node)
            if record is not None and record.source is not None:
                source, module = record.source, record.module
            if hook is not None:
                source = issued_at = hook
        return Place(
            milestone=self.milestone,
            in_backward=in_backward,
            in_model=self.in_model and not in_backward,
            in_optimizer=self._optimizer_depth > 0,
            marks=marks(),
            module=module,
            source=source,
            issued_at=issued_at if issued_at != source else None,
            num_model_calls=self.num_model_calls,
            in_hook=hook is not None,
            node=node.name() if in_backward and node is not None else None,
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Follow what runs inside."""
        with ExitStack() as stack:
            for handle in (
                register_module_forward_pre_hook(self._enter),
                register_module_forward_hook(self._leave, always_call=True),
                register_optimizer_step_pre_hook(self._before_optimizer),
                register_optimizer_step_post_hook(self._after_optimizer),
            ):
                stack.callback(handle.remove)
            stack.enter_context(before_scale(self._note_scale))
            stack.enter_context(before_backward(self._begin_backward))
            stack.enter_context(before_grad(self._begin_grad))
            for optimizer in self._optimizers:
                if not isinstance(optimizer, torch.optim.Optimizer):
                    stack.enter_context(replaced(optimizer, "step", self._seen_step))
            yield

    def forget(self) -> None:
        """Drop the owner's functions and the models."""
        self._on_model_call, self._on_backward = lambda model, inputs: None, lambda roots: None
        self._kept.clear()

    def _note_scale(self, scaler: torch.amp.GradScaler, losses: Any) -> None:
        with _disable_current_modes():
            self.scale = scaler.get_scale() if scaler.is_enabled() else None

    def _begin_grad(self, outputs: Any, inputs: Any) -> None:
        """Gradients by parameters are a step's; by inputs they are part of a loss (a gradient penalty)."""
        if any(tensor.is_leaf and isinstance(tensor, nn.Parameter) for tensor in tensors_in(inputs)):
            self._begin_backward(outputs)

    def _begin_backward(self, roots: Any) -> None:
        self._on_backward(list(tensors_in(roots)))
        if not self._calls:  # not that of activation checkpointing, which runs inside
            self.milestone = "backward"

    def _seen_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """For an optimizer that is not torch's, and so has no hooks."""

        def step(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self._before_optimizer(None, args, kwargs)
            try:
                return original(*args, **kwargs)
            finally:
                self._after_optimizer()

        return step

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        name = self.module_name(module)
        if self._listed:
            is_model = id(module) in self._model_ids or any(id(m) in self._model_ids for m in module.children())
        else:
            is_model = next(module.parameters(), None) is not None
        self._calls.append(_Call(name, is_model, torch._C._current_graph_task_id()))
        self.num_open += is_model
        if is_model and self.num_open == 1:
            self.num_model_calls += torch._C._current_graph_task_id() == -1
            self._on_model_call(module, inputs)

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        if not self._calls:
            return
        call = self._calls.pop()
        self.num_open -= call.is_model
        if call.is_model and call.task == -1 and not self.num_open:
            self.milestone = "model"

    def _before_optimizer(
        self, optimizer: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._optimizer_depth += 1
        return self._with_closures_outside(args, kwargs)

    def _with_closures_outside(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of `step`: a closure that the optimizer calls is a step of its own, from the model to backward."""

        def outside(value: Any) -> Any:
            if not is_closure(value):
                return value

            def closure() -> Any:
                depth, self._optimizer_depth = self._optimizer_depth, 0
                self.milestone = "start"
                try:
                    return value()
                finally:
                    self._optimizer_depth = depth

            return closure

        return tuple(outside(one) for one in args), {key: outside(one) for key, one in kwargs.items()}

    def _after_optimizer(self, *_: object) -> None:
        self._optimizer_depth -= 1
        self.milestone = "optimizer"
