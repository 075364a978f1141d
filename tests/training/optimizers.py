"""Optimizers whose states are not AdamW's, written as others write them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

BLOCK = 64


def quantisation_map() -> Tensor:
    """256 values in [-1, 1], denser around 0, as bitsandbytes' dynamic map."""
    half = torch.logspace(-6, 0, 127)
    return torch.cat([-half.flip(0), torch.zeros(2), half])


def quantised(values: Tensor, qmap: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 codes of the shape of `values`, and the largest magnitude of each block, (blocks,) float32."""
    flat = nn.functional.pad(values.flatten().float(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    largest = flat.abs().amax(1).clamp(min=1e-30)
    codes = torch.bucketize(flat / largest[:, None], qmap).clamp(max=255).to(torch.uint8)
    return codes.flatten()[: values.numel()].view(values.shape), largest


def dequantised(codes: Tensor, largest: Tensor, qmap: Tensor) -> Tensor:
    values = qmap[codes.flatten().long()] * largest.repeat_interleave(BLOCK)[: codes.numel()]
    return values.view(codes.shape)


class Adam8bit(torch.optim.Optimizer):
    """bitsandbytes' layout: a Python step, uint8 states with a largest magnitude a block, one map shared by all.

    Small parameters keep float32 states. `k` counts in the group, as Prodigy's and schedule-free's do.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "k": 0, "d": 1e-6})
        self.qmap = quantisation_map()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, self.state[p], group)
            group["k"] += 1
            group["d"] = group["d"] * 1.5 if group["k"] % 2 else torch.tensor(group["d"]).item()

    def _update(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        small = p.numel() < BLOCK
        if not state:
            state["step"] = 0
            for i in (1, 2):
                state[f"state{i}"] = torch.zeros_like(p, dtype=torch.float32 if small else torch.uint8)
                if not small:
                    state[f"state{i}"].fill_(127)
                    state[f"qmap{i}"] = self.qmap
                    state[f"absmax{i}"] = torch.zeros(-(-p.numel() // BLOCK))
        state["step"] += 1
        moments = []
        for i, (beta, value) in enumerate(zip(group["betas"], (p.grad, p.grad.square()), strict=True), 1):
            old = (
                state[f"state{i}"] if small else dequantised(state[f"state{i}"], state[f"absmax{i}"], state[f"qmap{i}"])
            )
            new = old.lerp(value, 1 - beta)
            if small:
                state[f"state{i}"] = new
            else:
                state[f"state{i}"], state[f"absmax{i}"] = quantised(new, state[f"qmap{i}"])
            moments.append(new / (1 - beta ** state["step"]))
        p.sub_(group["lr"] * moments[0] / (moments[1].clamp(min=0).sqrt() + 1e-8))


class Quantised(Tensor):
    """A tensor made of tensors, as torchao's OptimState8bit is. It answers no operator but `detach`."""

    @staticmethod
    def __new__(cls, codes: Tensor, largest: Tensor, qmap: Tensor, signed: bool) -> "Quantised":
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32, device=codes.device)

    def __init__(self, codes: Tensor, largest: Tensor, qmap: Tensor, signed: bool) -> None:
        self.codes, self.largest, self.qmap, self.signed = codes, largest, qmap, signed

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "largest", "qmap"], (self.signed,)

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], context: Any, size: Any, stride: Any) -> "Quantised":
        return cls(parts["codes"], parts["largest"], parts["qmap"], *context)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{function} of a quantised state")

    def values(self) -> Tensor:
        return dequantised(self.codes, self.largest, self.qmap)


class Momentum8bit(torch.optim.Optimizer):
    """Momentum in a tensor subclass."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})
        self.qmap = quantisation_map()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                old = self.state[p]["momentum"].values() if self.state[p] else torch.zeros_like(p)
                new = 0.9 * old + p.grad
                self.state[p]["momentum"] = Quantised(*quantised(new, self.qmap), self.qmap, True)
                p.sub_(group["lr"] * new)


class Nested(torch.optim.Optimizer):
    """Histories, tuples and numbers in a dictionary of its own, and something that belongs to no parameter."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "best": float("inf"), "mode": "warm"})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        shared = self.state["all"]
        shared["calls"] = shared.get("calls", 0) + 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"history": [], "pair": (0, None), "by_axis": {0: p.new_zeros(()), "rest": p.new_empty(0)}}
                state["history"] = [*state["history"][-2:], p.grad.clone()]
                state["pair"] = (state["pair"][0] + 1, p.grad.mean())
                state["by_axis"][0] = state["by_axis"][0] + p.grad.abs().max()
                p.sub_(group["lr"] * sum(state["history"]) / (1 + state["by_axis"][0]))
            group["best"], group["mode"] = min(group["best"], float(shared["calls"])), "running"


def take_gradient_steps(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], steps: range) -> None:
    """Steps down |p - target|^2 with a target that turns with the step."""
    for step in steps:

        def closure(step: int = step) -> Tensor:
            loss = torch.zeros(())
            for i, p in enumerate(parameters.values()):
                wanted = torch.sin(torch.arange(p.numel(), dtype=torch.float32) * (i + 1) + step).view(p.shape)
                p.grad = (p.detach() - wanted).to(p.dtype)
                loss = loss + p.grad.float().square().sum()
            return loss

        closure()
        optimizer.step(closure)


def alike(one: Any, other: Any) -> bool:
    """Whether nested values are the same bits in the same types."""
    if isinstance(one, Quantised):
        return (
            type(one) is type(other)
            and one.signed == other.signed
            and all(alike(getattr(one, name), getattr(other, name)) for name in one.__tensor_flatten__()[0])
        )
    if isinstance(one, Tensor):
        return (
            type(one) is type(other)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and (not one.numel() or one.stride() == other.stride())  # of nothing, strides mean nothing
            and torch.equal(bits(one), bits(other))
        )
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A deep copy of its `state_dict`."""

    def copied(value: Any) -> Any:
        if isinstance(value, Quantised):
            return Quantised(value.codes.clone(), value.largest.clone(), value.qmap.clone(), value.signed)
        return value.clone() if isinstance(value, Tensor) else value

    return pytree.tree_map(copied, optimizer.state_dict())


Make = Callable[[Iterable[Any]], torch.optim.Optimizer]
