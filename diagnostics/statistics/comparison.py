"""One step in two precisions, layer by layer: how far apart, how close to the largest number, how much became zero."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.modules import in_backward, leaf_modules
from diagnostics.tensors import tensors_in, values_of


class LayerTrace:
    """Copies of every leaf module's outputs and of the gradients that came back to them, of a short run.

    Keeps whole tensors: for one small step, not for training. Forwards that activation checkpointing repeats count
    once.
    """

    activations: dict[str, list[Tensor]]
    """Layer -> its outputs of any shape in the order of the calls, in their own dtypes."""
    gradients: dict[str, list[Tensor]]
    """Layer -> gradients by its outputs, in the order in which they arrived."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.activations = {}
        self.gradients = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Copy what runs inside."""
        handles = [
            module.register_forward_hook(partial(self._after_forward, name))
            for name, module in leaf_modules(self._model).items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _after_forward(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if in_backward():
            return
        for tensor in tensors_in(output):
            self.activations.setdefault(name, []).append(tensor.detach().clone())
            if tensor.requires_grad:
                gradients = self.gradients.setdefault(name, [])
                tensor.register_hook(lambda gradient, gradients=gradients: gradients.append(gradient.detach().clone()))


@dataclass(frozen=True)
class Deviation:
    """A tensor in one precision against the same in a better one."""

    relative_error: float
    """|x - reference| / |reference|, L2 norms; 0 where both are zero, inf where only the reference is, nan where one
    is not finite."""
    headroom_bits: float
    """log2 of the dtype's largest number over the largest magnitude; inf for zeros, -inf where something is not
    finite."""
    underflow: float
    """Share of the reference's elements, zeros and subnormals left out, that are zero or subnormal here."""
    num_nonfinite: int
    """How many elements are NaN or Inf here."""


def deviation(seen: Sequence[Tensor], reference: Sequence[Tensor], scale: float = 1.0) -> Deviation:
    """How far apart two runs are, of tensors as if each list were one tensor.

    Args:
        seen: of any shapes and floating dtypes.
        reference: as many of the same shapes, in a better precision.
        scale: what `seen` was multiplied with on purpose (a gradient scaler's); its headroom and underflow are those
            of the scaled values.

    Raises:
        ValueError: the lists differ in length or shapes: the two runs did not make the same calls.
    """
    seen, reference = values_of(seen), values_of(reference)
    if [x.shape for x in seen] != [y.shape for y in reference]:
        raise ValueError("the two runs did not make the same calls")
    error = norm = 0.0
    largest, headroom, num_lost, num_nonzero, num_nonfinite = 0.0, math.inf, 0, 0, 0
    for x, y in zip(seen, reference, strict=True):
        info = torch.finfo(x.dtype)
        there = y.double().abs()
        magnitude = x.abs().double()
        error += float((x.double() / scale - y.double()).square().sum())
        norm += float(there.square().sum())
        num_nonfinite += int((~torch.isfinite(x)).sum())
        largest = float(magnitude.amax()) if x.numel() else 0.0
        if largest != 0.0:
            headroom = min(headroom, math.log2(info.max / largest) if math.isfinite(largest) else -math.inf)
        is_normal = there >= torch.finfo(y.dtype).tiny
        num_nonzero += int(is_normal.sum())
        num_lost += int((is_normal & (magnitude < info.tiny)).sum())
    relative = 0.0 if error == 0.0 else math.inf if norm == 0.0 else math.sqrt(error / norm)
    return Deviation(relative, headroom, num_lost / num_nonzero if num_nonzero else 0.0, num_nonfinite)
