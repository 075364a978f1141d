"""The first module, forward or backward, that turned finite values into NaN or Inf.

Module level: `locate_first_nonfinite` runs one forward and backward under hooks. It is called only after a step
has tripped, on the same weights, batch and randomness, so its many host reads cost a healthy run nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diagnostics.evidence import evidence, has_nan, is_bad, is_ceiling, is_harmful
from diagnostics.layers import eagerly, unwrapped
from diagnostics.module_watch import Birth, ModuleWatch
from diagnostics.statistics import dense

Phase = Literal["state", "data", "forward", "loss", "backward"]


@dataclass(frozen=True)
class NonFiniteFinding:
    """Where a non-finite value was born, to the module.

    phase: `state` (a parameter or buffer was bad before the step), `data` (an input was), `forward`, `loss`
    (the loss became bad, between the model's output and backward), `backward`.
    place: module, parameter or input, dotted; in backward also `loss`, the code between model and loss.
    kind: the module's class; `parameter` or `buffer`; `input` for a tensor of the batch, `input of` where the place
    is the module that received it; `gradient of NAME` where finite contributions overflowed in a parameter's sum.
    value: nan, inf or -inf, the first one. samples: indices along the batch dimension, empty where unknown.
    dtype, num_nonfinite: of the tensor in which it showed. largest_input: largest finite magnitude that went into
    the place (in backward, of the gradient that came to it); None where unknown.
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
            "data": f"{self.kind} {self.place} holds {self.value}",
            "forward": f"values became {self.value} first in the forward pass of {self.place} ({self.kind})",
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
    """One boolean scalar on the device; true for no tensors. Tests elements, not sums, which can overflow.

    Integer and meta tensors count as finite. The tensors share a device. No host synchronisation.
    """
    flags = []
    for tensor in tensors:
        values = dense(tensor)
        if values is not None and values.numel() and values.is_floating_point():
            wide = values.float() if values.dtype.itemsize == 1 else values
            # on the CPU ten times faster than isfinite over all elements; passes nan on
            flags.append(torch.isfinite(torch.stack(torch.aminmax(wide))).all())
    return torch.stack(flags).all() if flags else torch.ones((), dtype=torch.bool)


def locate_first_nonfinite(
    model: nn.Module, forward_backward: Callable[[], Tensor], *, batch: Mapping[str, Tensor] | None = None
) -> NonFiniteFinding | None:
    """Run `forward_backward` once under hooks and name where the first non-finite value was born.

    Args:
        model: its parameters, buffers and modules are watched. For DistributedDataParallel, every process must call.
        forward_backward: forward, loss and `backward()`; returns the loss, scalar or per sample (B,). Must not step,
            and must draw the same random numbers as the step in question (seed them inside). Called once, and not
            at all if a parameter or buffer holds NaN, or a parameter Inf.
        batch: named inputs (B, ...), so that a bad sample can be told from a bad module. Without it the first
            dimension of the first tensor that enters the model counts as B.

    Returns None where nothing bad reached the loss or the gradient of a parameter or other leaf: -inf in attention
    masks, bad values in padding that is masked, modules whose -inf is absorbed later are no finding. Additive masks
    (zeros and -inf) are never blamed; a module with other -inf in its output is, if harm came of it.

    Buffers that the pass changes (running means) are put back. Gradients are left as `forward_backward` leaves
    them, added to what was there: clear them before and after. Restoring random generators is the caller's.
    Many host reads; the graph is walked in Python. Compiled modules run eagerly.
    """
    model = unwrapped(model)
    named = batch or {}
    found = _bad_state(model)
    if found is not None:
        return found
    sizes = {tensor.shape[0] for tensor in named.values() if tensor.ndim}
    watch = ModuleWatch(model, sizes.pop() if len(sizes) == 1 else None)
    try:
        with _buffers_kept(model), eagerly():
            loss = forward_backward()
    finally:
        watch.remove()
    if is_bad(loss):
        birth = watch.forward_birth()
        if birth is not None and not birth.is_input:
            return _bad_buffer(birth) or _from_birth("forward", birth)
        bad_input = _bad_input(named)
        if bad_input is not None:
            return bad_input
        if birth is not None:
            return _from_birth("data", birth, kind="input of")
        return _from_tensor("loss", "loss", "loss", loss, watch.batch_size)
    birth = watch.backward_birth()
    if birth is not None:
        return _from_birth("backward", birth)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and is_bad(parameter.grad):
            owner, _, leaf = name.rpartition(".")
            return _from_tensor("backward", owner or name, f"gradient of {leaf}", parameter.grad, None)
    return None


def _bad_state(model: nn.Module) -> NonFiniteFinding | None:
    """The first bad parameter, then the first buffer with NaN: an infinite buffer may be a mask or a start value."""
    for name, parameter in model.named_parameters():
        if is_bad(parameter):
            return _from_tensor("state", name, "parameter", parameter, None)
    for name, buffer in model.named_buffers():
        if has_nan(buffer):
            return _from_tensor("state", name, "buffer", buffer, None)
    return None


def _bad_buffer(birth: Birth) -> NonFiniteFinding | None:
    """An infinite buffer, other than a mask, of the module where the birth was."""
    if birth.module is not None:
        for name, buffer in birth.module.named_buffers(recurse=False):
            if is_bad(buffer) and not is_ceiling(buffer):
                return _from_tensor("state", f"{birth.owner.place}.{name}", "buffer", buffer, None)
    return None


def _bad_input(batch: Mapping[str, Tensor]) -> NonFiniteFinding | None:
    """The first named tensor (B, ...) that holds a non-finite value, with its samples."""
    for name, tensor in batch.items():
        if is_harmful(tensor):
            return _from_tensor("data", name, "input", tensor, tensor.shape[0] if tensor.ndim else None)
    return None


def _from_birth(phase: Phase, birth: Birth, *, kind: str | None = None) -> NonFiniteFinding:
    seen, owner = birth.evidence, birth.owner
    largest = None if phase == "data" else birth.largest_input
    return NonFiniteFinding(
        phase, owner.place, kind or owner.kind, seen.value, seen.samples, seen.dtype, largest, seen.num_nonfinite
    )


def _from_tensor(phase: Phase, place: str, kind: str, tensor: Tensor, batch_size: int | None) -> NonFiniteFinding:
    seen = evidence(tensor, batch_size)
    return NonFiniteFinding(phase, place, kind, seen.value, seen.samples, seen.dtype, None, seen.num_nonfinite)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give every buffer back its value, and the module its buffer, whatever happens inside."""
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                buffer.copy_(value)  # always: batch normalisation changes its buffers without raising their version
                module._buffers[name] = buffer
