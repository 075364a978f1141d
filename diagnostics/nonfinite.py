"""The error a watched step raises, and finite checks that leave their answer on the device."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diagnostics.provenance import bad_flags, is_inexact, strided
from diagnostics.statistics import dense
from diagnostics.verdict import Verdict


class NonFiniteError(ArithmeticError):
    """A step met NaN or Inf.

    incident: folder with the evidence, None where none was written. is_restored: whether weights, optimizer states and
    averages are those before the step.
    """

    exit_code = 1

    def __init__(
        self, verdict: Verdict, incident: Path | None = None, *, is_restored: bool = True, note: str = ""
    ) -> None:
        state = "Parameters, optimizer state and averages are as before the step; gradients are cleared."
        if not is_restored:
            state = (
                "Parameters are NOT as before the step: an optimizer had moved them already, of which this watch "
                "learned only now. Load the last checkpoint. From now on copies are kept, unless undo is `never`."
            )
        tail = f"evidence in {incident}" if incident is not None else note
        super().__init__("\n".join(filter(None, [str(verdict), state, tail])))
        self.verdict = verdict
        self.incident = incident
        self.is_restored = is_restored


def values_of(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """The floating and complex values that this process holds of some tensors, without their graphs."""
    found = (strided(tensor) for tensor in tensors if tensor is not None)
    return [values.detach() for values in found if values is not None and is_inexact(values) and values.numel()]


def magnitude(tensors: Sequence[Tensor]) -> Tensor:
    """Joint L2 norm, a float64 scalar on the first tensor's device; 0 of nothing. No host synchronisation.

    Finite only if every element is; may be inf where squares overflow, so that inf needs a second look.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    device = tensors[0].device
    norms = [norm.to(device, torch.float64) for group in groups.values() for norm in torch._foreach_norm(group)]
    return torch.linalg.vector_norm(torch.stack([norm.real if norm.is_complex() else norm for norm in norms]))


def any_bad(tensors: Sequence[Tensor]) -> bool:
    """Whether any element of any tensor is NaN or Inf. Exact; reads on the host."""
    return any(bad_flags(list(tensors)))


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """One boolean scalar on the device; true for no tensors. Tests elements, not sums, which can overflow.

    Integer and meta tensors count as finite. The scalar is on an accelerator where any
    tensor is on one: AdamW keeps its step counts on the CPU. No host synchronisation.
    """
    flags: list[Tensor] = []
    for tensor in tensors:
        values = dense(tensor)
        if values is not None and values.numel() and values.is_floating_point():
            wide = values.float() if values.dtype.itemsize == 1 else values
            # on the CPU ten times faster than isfinite over all elements; passes nan on
            flags.append(torch.isfinite(torch.stack(torch.aminmax(wide))).all())
    device = next((flag.device for flag in flags if flag.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([flag.to(device) for flag in flags]).all() if flags else torch.ones((), dtype=torch.bool)
