"""Hears the calls of a step: backward, `zero_grad`, gradient scalers, clipping, optimizers."""

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.utils.clip_grad
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from diagnostics.patching import (
    after_gradients,
    after_scale,
    before_backward,
    before_grad,
    is_closure,
    replaced,
    variables_of,
)
from diagnostics.tensors import tensors_in


@dataclass(frozen=True)
class Clip:
    """A call that clips gradients, before it does."""

    call: str
    """`clip_grad_norm_` or `clip_grad_value_`."""
    limit: float
    """inf where only the norm is wanted, NaN where it is not known on the host."""
    gradients: list[Tensor]
    """Of any shape; none where no parameter has one."""


class Listener(Protocol):
    """What hears them."""

    def before_backward(self, roots: list[Tensor]) -> None: ...

    def after_backward(self) -> None: ...

    def after_clear(self, owner: Any) -> None: ...

    def after_scale(self, scaled: list[Tensor]) -> None: ...

    def on_scaler(self, scaler: Any, call: str, optimizer: Any) -> None: ...

    def on_clip(self, clip: Clip) -> None: ...

    def before_optimizer(self, optimizer: Any, has_closure: bool) -> None: ...

    def before_closure(self, optimizer: Any) -> None: ...

    def after_optimizer(self, optimizer: Any, has_closure: bool) -> None: ...


@contextmanager
def heard(listener: Listener, optimizers: list[Any]) -> Iterator[None]:
    """Tell the listener what is called inside. Reads nothing, changes nothing.

    Args:
        optimizers: those without hooks of torch's are heard by their own `step`.
    """
    clip = torch.nn.utils.clip_grad
    with ExitStack() as stack:
        stack.enter_context(before_backward(lambda roots: listener.before_backward(list(tensors_in(roots)))))
        stack.enter_context(before_grad(lambda outputs, _: listener.before_backward(list(tensors_in(outputs)))))
        stack.enter_context(after_gradients(listener.after_backward))
        for owner in (torch.optim.Optimizer, nn.Module):
            stack.enter_context(replaced(owner, "zero_grad", lambda original: _cleared(listener, original)))
        stack.enter_context(after_scale(lambda scaler, scaled: _tell_scaled(listener, scaler, scaled)))
        for call in ("unscale_", "step", "update"):
            stack.enter_context(replaced(torch.amp.GradScaler, call, _of_scaler(listener, call)))
        stack.enter_context(replaced(clip, "_clip_grads_with_norm_", lambda original: _by_norm(listener, original)))
        grouping = "_group_tensors_by_device_and_dtype"  # that a function imported by its name calls, too
        stack.enter_context(replaced(clip, grouping, lambda original: _by_value(listener, original)))
        _hear_optimizers(stack, listener, optimizers)
        yield


def _hear_optimizers(stack: ExitStack, listener: Listener, optimizers: list[Any]) -> None:
    running: list[Any] = []  # a class that calls its parent's `step` has the hooks called twice

    def before(optimizer: Any, args: Any, kwargs: Any) -> Any:
        is_outermost = not running  # SAM and Lookahead step another one inside
        running.append(optimizer)
        if not is_outermost:
            return None
        has_closure = _has_closure(args[1:], kwargs)
        listener.before_optimizer(optimizer, has_closure)
        return _with_heard_closures(listener, optimizer, args, kwargs) if has_closure else None

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        running.pop()
        if not running:
            listener.after_optimizer(optimizer, _has_closure(args[1:], kwargs))

    if "torch._dynamo" in sys.modules:  # a compiled step would compile them
        before, after = torch.compiler.disable(before), torch.compiler.disable(after)
    stack.callback(register_optimizer_step_pre_hook(before).remove)
    stack.callback(register_optimizer_step_post_hook(after).remove)
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.Optimizer):
            continue

        def around(original: Callable[..., Any], optimizer: Any = optimizer) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                has_closure = _has_closure(args, kwargs)
                listener.before_optimizer(optimizer, has_closure)
                result = original(*args, **kwargs)
                listener.after_optimizer(optimizer, has_closure)
                return result

            return step

        stack.enter_context(replaced(optimizer, "step", around))


def _has_closure(args: Any, kwargs: Any) -> bool:
    return any(map(is_closure, (*args, *kwargs.values())))


def _with_heard_closures(listener: Listener, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of an optimizer's step, whose closures tell that they are called."""

    def heard(value: Any) -> Any:
        if not is_closure(value):
            return value

        @functools.wraps(value)
        def closure(*given: Any, **named: Any) -> Any:
            listener.before_closure(optimizer)
            return value(*given, **named)

        return closure

    return (args[0], *map(heard, args[1:])), {key: heard(value) for key, value in kwargs.items()}


def _cleared(listener: Listener, original: Callable[..., Any]) -> Callable[..., Any]:
    def zero_grad(owner: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(owner, *args, **kwargs)
        listener.after_clear(owner)
        return result

    return zero_grad


def _of_scaler(listener: Listener, call: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            _tell_scaler(listener, scaler, call, (*args, *kwargs.values()))
            result = original(scaler, *args, **kwargs)
            if call == "step":
                _tell_scaler(listener, scaler, "stepped", (*args, *kwargs.values()))
            return result

        return run

    return make


def _tell_scaled(listener: Listener, scaler: Any, scaled: Any) -> None:
    if scaler.is_enabled():
        listener.after_scale(list(tensors_in(scaled)))


def _tell_scaler(listener: Listener, scaler: Any, call: str, arguments: tuple[Any, ...]) -> None:
    if scaler.is_enabled():
        optimizer = arguments[0] if arguments and call in ("unscale_", "step", "stepped") else None
        listener.on_scaler(scaler, call, optimizer)


def _by_norm(listener: Listener, original: Callable[..., Any]) -> Callable[..., Any]:
    def clip(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
        listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        gradients = [p.grad for p in listed if p.grad is not None]
        listener.on_clip(Clip("clip_grad_norm_", _number(max_norm), gradients))
        return original(listed, max_norm, *args, **kwargs)

    return clip


def _by_value(listener: Listener, original: Callable[..., Any]) -> Callable[..., Any]:
    def group(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if caller.f_code.co_name == "clip_grad_value_":
            limit = _number(variables_of(caller).get("clip_value"))
            listener.on_clip(Clip("clip_grad_value_", limit, list(tensors_in(tensors))))
        return original(tensors, *args, **kwargs)

    return group


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
