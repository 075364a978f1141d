"""Optimizer states as libraries of low-precision optimizers have them, and an optimizer that keeps all kinds."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

BLOCK = 4


class EightBit(Tensor):
    """A float32 tensor held as codes of 8 bits, a scale for each block, and a shared table. No operator takes it but
    `detach`: whoever copies or inspects it has to look inside."""

    codes: Tensor
    scales: Tensor
    table: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor, table: Tensor, shape: torch.Size) -> "EightBit":
        return Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)  # type: ignore[attr-defined]

    def __init__(self, codes: Tensor, scales: Tensor, table: Tensor, shape: torch.Size) -> None:
        self.codes, self.scales, self.table = codes, scales, table

    @classmethod
    def zeros_like(cls, tensor: Tensor, table: Tensor) -> "EightBit":
        num_blocks = -(-tensor.numel() // BLOCK)
        codes = torch.zeros(num_blocks * BLOCK, dtype=torch.uint8)
        return cls(codes, torch.zeros(num_blocks), table, tensor.shape)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"EightBit({tuple(self.shape)})"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scales", "table"], self.shape

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], shape: Any, outer_size: Any, outer_stride: Any) -> Any:
        return cls(**inner, shape=shape)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            (self,) = args
            return cls(self.codes, self.scales, self.table, self.shape)
        raise NotImplementedError(f"{func} of codes")

    def dequantized(self) -> Tensor:
        blocks = self.table[self.codes.long()].view(-1, BLOCK) * self.scales[:, None]
        return blocks.flatten()[: self.numel()].view(self.shape)

    def quantize_(self, values: Tensor) -> None:
        blocks = torch.zeros(self.codes.numel())
        blocks[: values.numel()] = values.flatten()
        blocks = blocks.view(-1, BLOCK)
        self.scales.copy_(blocks.abs().amax(1))
        relative = blocks / self.scales.clamp_min(1e-12)[:, None]
        self.codes.copy_(torch.searchsorted(self.table, relative.flatten().contiguous()).clamp_(max=255))


class Hoarder(torch.optim.Optimizer):
    """Momentum that is kept in every form in which an optimizer may keep something, and used in all of them.

    `lr` may be set to NaN, which spoils the step.
    """

    def __init__(self, parameters: Any, lr: float = 1e-2) -> None:
        super().__init__(parameters, {"lr": lr, "history": [], "limits": {"seen": 0.0}})
        self.table = torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["history"].append(group["lr"])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    self._begin(state, parameter)
                update = self._update(state, parameter.grad, group)
                parameter.sub_(update, alpha=group["lr"])

    def _begin(self, state: dict[str, Any], parameter: Tensor) -> None:
        state["calls"] = 0
        state["codes"] = torch.full((7,), 128, dtype=torch.uint8)
        state["counts"] = torch.zeros(2, 3, dtype=torch.int64)
        state["row"] = torch.zeros(parameter.shape[0], 1)
        state["eight"] = EightBit.zeros_like(parameter, self.table)
        state["nested"] = {"moments": [torch.zeros_like(parameter), (torch.zeros(()), {"deep": torch.zeros(2)})]}
        state["last"] = deque(maxlen=2)
        state["seen"] = set()
        state["phase"] = torch.zeros(3, dtype=torch.complex64)
        state["narrow"] = torch.zeros(5, dtype=torch.float8_e4m3fn)
        state["word"] = "warm"

    def _update(self, state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state["calls"] += 1
        state["codes"].add_(3)
        state["counts"][:, 1] += state["calls"]
        state["row"].lerp_(gradient.flatten(1).mean(1, keepdim=True) if gradient.ndim > 1 else gradient[:, None], 0.1)
        moments = state["nested"]["moments"]
        moments[0].lerp_(gradient, 0.1)
        moments[1][1]["deep"] = moments[1][1]["deep"] + gradient.norm()  # by assignment
        moments.append(gradient.norm().clone())
        state["last"].append(gradient.mean())
        state["seen"].add(state["calls"])
        state["phase"].mul_(1j).add_(gradient.mean())
        state["narrow"] = (state["narrow"].float() + 0.25).to(torch.float8_e4m3fn)
        state["word"] += "er"
        group["limits"]["seen"] = max(group["limits"]["seen"], float(gradient.abs().max()))
        mixed = 0.9 * state["eight"].dequantized() + 0.1 * gradient
        state["eight"].quantize_(mixed)
        return mixed + 1e-3 * moments[0] + 1e-6 * state["counts"].sum() + 1e-6 * state["codes"].float().mean()
