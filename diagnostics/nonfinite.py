"""The first module, forward or backward, that turned finite values into NaN or Inf.

Module level: `locate_first_nonfinite` runs one forward and backward under hooks. It is called only after a step
has tripped, on the same weights, batch and randomness, so its many host reads cost a healthy run nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diagnostics.layers import tensors_in

Phase = Literal["state", "data", "forward", "loss", "backward"]


@dataclass(frozen=True)
class NonFiniteFinding:
    """Where a non-finite value was born, to the module.

    phase: `state` (a parameter or buffer was bad before the step), `data` (an input was), `forward`, `loss`
    (between the model's output and backward), `backward`. place: module, parameter or input, dotted.
    samples: indices along the batch dimension, empty where the place has none. value: nan, inf or -inf.
    largest_input: largest finite magnitude that went into the place; None where unknown.
    """

    phase: Phase
    place: str
    kind: str
    value: str
    samples: tuple[int, ...]
    dtype: str
    largest_input: float | None
    num_nonfinite: int

    def __str__(self) -> str:
        where = {
            "state": f"{self.kind} {self.place} was already {self.value} before the step",
            "data": f"input {self.place} holds {self.value}",
            "forward": f"the output of {self.place} ({self.kind}) became {self.value} in the forward pass",
            "loss": f"the loss became {self.value} while the model's output was finite",
            "backward": f"the gradient became {self.value} first in the backward pass of {self.place} ({self.kind})",
        }[self.phase]
        limit = torch.finfo(getattr(torch, self.dtype)).max
        text = f"{where}; {self.dtype}, {self.num_nonfinite} values"
        if self.largest_input is not None:
            text += f", largest input {self.largest_input:.3g} (limit {limit:.3g})"
        return text

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class NonFiniteError(Exception):
    """Loss or gradients are not finite. Raised before the optimizer step: weights are as they were.

    `finding` is None where the failure did not happen again on the repeated step.
    """

    exit_code = 1

    def __init__(self, message: str, *, step: int, finding: NonFiniteFinding | None, sample_ids: tuple[str, ...]):
        super().__init__(message)
        self.step = step
        self.finding = finding
        self.sample_ids = sample_ids


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """One boolean scalar on the device; true for no tensors. Tests elements, not sums, which can overflow."""
    flags = [torch.isfinite(tensor).all() for tensor in tensors]
    return torch.stack(flags).all() if flags else torch.ones((), dtype=torch.bool)


def find_bad_state(model: nn.Module) -> NonFiniteFinding | None:
    """The first parameter, then buffer, that holds a non-finite value."""
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                return _finding("state", name, kind, tensor, samples=())
    return None


def find_bad_input(batch: Mapping[str, Tensor]) -> NonFiniteFinding | None:
    """The first named tensor (B, ...) that holds a non-finite value, with its samples."""
    for name, tensor in batch.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return _finding("data", name, "input", tensor)
    return None


def locate_first_nonfinite(
    model: nn.Module, forward_backward: Callable[[], Tensor], *, batch: Mapping[str, Tensor] | None = None
) -> NonFiniteFinding | None:
    """Run `forward_backward` once under hooks and name where the first non-finite value was born.

    Args:
        model: its parameters, buffers and modules are watched.
        forward_backward: forward, loss and `backward()`; returns the loss, scalar or per sample (B,). Must not step.
        batch: named inputs (B, ...), so that a bad sample can be told from a bad module.

    Returns None where everything stayed finite. Gradients are left as `forward_backward` leaves them.
    """
    bad = find_bad_state(model) or find_bad_input(batch or {})
    if bad is not None:
        return bad
    watch = _ModuleWatch(model)
    try:
        loss = forward_backward()
    finally:
        watch.remove()
    if watch.forward is not None:
        return watch.forward
    if not torch.isfinite(loss).all():
        return _finding("loss", "loss", "loss", loss)
    if watch.backward is not None:
        return watch.backward
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            owner, _, leaf = name.rpartition(".")
            return _finding("backward", owner or name, f"gradient of {leaf}", parameter.grad, samples=())
    return None


class _ModuleWatch:
    """Hooks on every module: the first bad output whose inputs were good, the first bad gradient likewise."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: NonFiniteFinding | None = None
        self.backward: NonFiniteFinding | None = None
        self._good_output_gradient: set[int] = set()
        self._handles = []
        for name, module in model.named_modules():
            label = name or type(model).__name__
            self._handles.append(module.register_forward_pre_hook(self._before(label, module), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(label, module), with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, label: str, module: nn.Module) -> Any:
        def input_gradient(gradient: Tensor) -> None:
            if self.backward is None and id(module) in self._good_output_gradient and _is_bad(gradient):
                self.backward = _finding("backward", label, type(module).__name__, gradient)

        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            for tensor in tensors_in([args, kwargs]):
                if tensor.requires_grad:
                    tensor.register_hook(input_gradient)

        return hook

    def _after(self, label: str, module: nn.Module) -> Any:
        def output_gradient(gradient: Tensor) -> None:
            if _is_bad(gradient):
                if self.backward is None:
                    # Born between this module's output and whatever used it, outside every module's inputs.
                    self.backward = _finding("backward", label, f"after {type(module).__name__}", gradient)
            else:
                self._good_output_gradient.add(id(module))

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for tensor in tensors_in(output):
                # Children return before their parents, so the innermost guilty module reports first.
                if self.forward is None and _is_bad(tensor):
                    inputs = list(tensors_in([args, kwargs]))
                    largest = max((float(x.detach().abs().amax()) for x in inputs if x.numel()), default=None)
                    self.forward = _finding("forward", label, type(module).__name__, tensor, largest_input=largest)
                if tensor.requires_grad:
                    tensor.register_hook(output_gradient)

        return hook


def _is_bad(tensor: Tensor) -> bool:
    return not bool(torch.isfinite(tensor).all())


def _finding(
    phase: Phase,
    place: str,
    kind: str,
    tensor: Tensor,
    samples: tuple[int, ...] | None = None,
    largest_input: float | None = None,
) -> NonFiniteFinding:
    bad = ~torch.isfinite(tensor.detach())
    if samples is None:
        samples = ()
        if tensor.ndim > 0:
            samples = tuple(bad.flatten(1).any(dim=1).nonzero().flatten().tolist() if tensor.ndim > 1 else ())
            if tensor.ndim == 1:
                samples = tuple(bad.nonzero().flatten().tolist())
    first = tensor.detach()[bad].flatten()[0].item() if tensor.ndim else tensor.item()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return NonFiniteFinding(phase, place, kind, f"{first}", samples, dtype, largest_input, int(bad.sum()))
