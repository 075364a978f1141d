"""Standing in for a function for a while, where torch offers no hook: backward, gradient scalers, any attribute; and
the frames that call it, with their variables."""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from inspect import CO_OPTIMIZED
from types import FrameType
from typing import Any

import torch


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Put `make(original)` in place of attribute `name` of a module, class or instance; afterwards all is as before.

    An instance gets its own attribute, which is deleted again, so that its class is not touched.
    """
    had_own = name in vars(owner)
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        if had_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


class StandIn:
    """As `replaced`, for as long as its owner likes; what others put in the same place meanwhile is left to them."""

    def __init__(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        """make: gets the original, and returns what stands in."""
        self._owner, self._name, self._make = owner, name, make
        self._own: Any = None
        self._originals: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # own -> what it stands over

    @property
    def is_there(self) -> bool:
        """Whether a call of the attribute comes to it first."""
        return self._own is not None and getattr(self._owner, self._name) is self._own

    def put(self) -> None:
        """Stand in, once more where another has put its own original back over it."""
        if not self.is_there:
            self.take_back()
            original = getattr(self._owner, self._name)
            self._own = self._make(original)
            self._originals[self._own] = original
            setattr(self._owner, self._name, self._own)

    def take_back(self) -> None:
        """Also an earlier one of its own, which another took for the original and put back."""
        found = getattr(self._owner, self._name)
        while found in self._originals:
            found = self._originals[found]
            setattr(self._owner, self._name, found)
        self._own = None


# Optimizers


def is_closure(value: Any) -> bool:
    """Whether an argument of an optimizer's `step` is a function that it calls; a model is callable, too."""
    return callable(value) and not isinstance(value, (torch.nn.Module, torch.optim.Optimizer, torch.Tensor, type))


# Autograd


def before_backward(note: Callable[[Any], None]) -> AbstractContextManager[None]:
    """Call `note(roots)` before each backward pass: `Tensor.backward` and `torch.autograd.backward`.

    roots: what is differentiated, a tensor or a sequence of them, any shape.
    """

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            note(tensors)
            return original(tensors, *args, **kwargs)

        return backward

    return replaced(torch.autograd, "backward", noted)


def before_grad(note: Callable[[Any, Any], None]) -> AbstractContextManager[None]:
    """Call `note(outputs, inputs)` before each `torch.autograd.grad`: tensors or sequences of them, any shape."""

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            note(outputs, inputs)
            return original(outputs, inputs, *args, **kwargs)

        return grad

    return replaced(torch.autograd, "grad", noted)


@contextmanager
def after_gradients(note: Callable[[], None]) -> Iterator[None]:
    """Call `note()` after each backward pass and each `torch.autograd.grad`."""

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def compute(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            note()
            return result

        return compute

    with replaced(torch.autograd, "backward", noted), replaced(torch.autograd, "grad", noted):
        yield


# Gradient scalers. One may be anywhere in the caller's loop; its class is where all of them are seen.


@contextmanager
def before_scale(note: Callable[[torch.amp.GradScaler, Any], None]) -> Iterator[None]:
    """Call `note(scaler, losses)` before a gradient scaler scales losses, a tensor of any shape or several; a new
    scaler has no scale tensor until then."""

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
            note(scaler, outputs)
            return original(scaler, outputs)

        return scale

    with _scaling_replaced(noted):
        yield


@contextmanager
def after_scale(note: Callable[[torch.amp.GradScaler, Any], None]) -> Iterator[None]:
    """Call `note(scaler, scaled)` after a gradient scaler has scaled losses, a tensor of any shape or several."""

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
            scaled = original(scaler, outputs)
            note(scaler, scaled)
            return scaled

        return scale

    with _scaling_replaced(noted):
        yield


@contextmanager
def _scaling_replaced(make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for kind in _with_subclasses(torch.amp.GradScaler):
            if "scale" in vars(kind):  # FSDP's has one of its own
                stack.enter_context(replaced(kind, "scale", make))
        yield


def _with_subclasses(kind: type) -> list[type]:
    below: list[type] = kind.__subclasses__()
    return [kind, *(one for child in below for one in _with_subclasses(child))]


@contextmanager
def before_scaler_step(note: Callable[[torch.amp.GradScaler], None]) -> Iterator[None]:
    """Call `note(scaler)` before a gradient scaler's `step` and `update`: a loop may step its optimizer itself."""

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> Any:
            note(scaler)
            return original(scaler, *args, **kwargs)

        return step

    with replaced(torch.amp.GradScaler, "step", noted), replaced(torch.amp.GradScaler, "update", noted):
        yield


# Frames

_HELD_BY_FRAME = 3  # references to the snapshot of a frame's variables: the frame's, a local one, the question's
_LIBRARIES = (
    *("torch", "diagnostics", "accelerate", "lightning", "pytorch_lightning", "lightning_fabric", "transformers"),
    *("deepspeed", "ignite", "contextlib", "functools"),
)


def variables_of(frame: FrameType) -> dict[str, Any]:
    """Names and values of a frame's own variables, as they are now; nothing of it is kept by the frame."""
    found = frame.f_locals
    values = dict(found)
    is_snapshot = frame.f_code.co_flags & CO_OPTIMIZED and type(found) is dict
    if is_snapshot and sys.getrefcount(found) <= _HELD_BY_FRAME:  # else the frame's code has it, from `locals()`
        found.clear()  # before Python 3.13 it would keep alive what the variables held, until somebody looks again
    return values


def own_frames() -> Iterator[FrameType]:
    """Frames of the stack that are of no library that trains, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _LIBRARIES:
            yield frame
        frame = frame.f_back
