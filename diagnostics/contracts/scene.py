"""What contracts are about: models, their optimizers and the step that runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.modules import unwrapped, walk
from diagnostics.tensors import named_tensors

_NUM_SAMPLES = 24  # parameters of an optimizer that are looked at in every step
_MAX_NAMED = 200  # tensors of a batch


def bare(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrapper; any other as it is."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if callable(getattr(inner, "step", None)) else optimizer


def held_by(optimizer: Any) -> list[nn.Parameter]:
    """Parameters of any shape in an optimizer's groups; none where it has no groups."""
    return [p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]]


def samples_of(optimizer: Any) -> list[nn.Parameter]:
    """A few of the parameters of any shape that an optimizer trains, first and last among them."""
    held = held_by(optimizer)
    held = [p for p in held if p.requires_grad] or held  # a GAN's loop freezes one of its models for a while
    if len(held) <= _NUM_SAMPLES:
        return held
    return [held[i * (len(held) - 1) // (_NUM_SAMPLES - 1)] for i in range(_NUM_SAMPLES)]


def largest_rate(optimizer: Any) -> float | None:
    """The largest learning rate of its groups; None where one is on an accelerator, or there is none."""
    rates = []
    for group in getattr(optimizer, "param_groups", ()):
        rate = group.get("lr")
        if isinstance(rate, Tensor):
            rate = rate.item() if rate.device.type == "cpu" and rate.numel() == 1 else None
        if not isinstance(rate, (int, float)):
            return None
        rates.append(float(rate))
    return max(rates, default=None)


@dataclass
class Scene:
    """The models and optimizers of one watch. The lists are the watch's own: what it adopts is there, too."""

    models: list[nn.Module]
    optimizers: list[Any]
    are_given: bool
    """Whether the caller named the optimizers; else they are those that have stepped."""

    def bare_optimizers(self) -> list[Any]:
        return [bare(optimizer) for optimizer in self.optimizers]

    def parameters(self) -> dict[int, nn.Parameter]:
        """id -> parameter, of the models as they are now."""
        found: dict[int, nn.Parameter] = {}
        for model in self.models:
            for _, module in walk(model):
                found |= {id(p): p for p in module._parameters.values() if p is not None}
        return found

    def layers(self) -> list[nn.Module]:
        """Linear layers and convolutions."""
        kinds = (nn.Linear, nn.modules.conv._ConvNd)
        return [module for model in self.models for _, module in walk(model) if isinstance(module, kinds)]

    def names(self) -> dict[int, str]:
        """id of a parameter -> its dotted name in the bare model; of several models, `0.weight` is the first one's."""
        found: dict[int, str] = {}
        for number, model in enumerate(self.models):
            start = f"{number}." if len(self.models) > 1 else ""
            for name, module in walk(unwrapped(model)):
                prefix = start + (f"{name}." if name else "")
                for key, parameter in module._parameters.items():
                    if parameter is not None:
                        found.setdefault(id(parameter), (prefix + key).replace("_orig_mod.", ""))
        return found

    def name_of(self, parameter: Tensor) -> str:
        return self.names().get(id(parameter), f"a parameter of shape {tuple(parameter.shape)}")

    def concerns(self, optimizer: Any) -> bool:
        """Whether an optimizer is one of these, or holds a parameter of these models."""
        if any(optimizer is one for one in self.bare_optimizers()):
            return True
        own = self.parameters()
        return any(id(p) in own for p in held_by(optimizer))

    def name_of_optimizer(self, optimizer: Any) -> str:
        """Its class, with its place where there are several."""
        own = self.bare_optimizers()
        place = next((i for i, one in enumerate(own) if one is optimizer), None)
        kind = type(optimizer).__name__
        return f"optimizer {place} ({kind})" if len(own) > 1 and place is not None else kind

    def call_of(self, optimizer: Any, call: str) -> str:
        """`optimizer.zero_grad`; `optimizer 1.zero_grad` where there are several."""
        own = self.bare_optimizers()
        place = next((i for i, one in enumerate(own) if one is optimizer), None)
        return f"optimizer {place}.{call}" if len(own) > 1 and place is not None else f"optimizer.{call}"


@dataclass
class Step:
    """The step that runs."""

    index: int
    """0-based."""
    is_due: bool
    """May take longer than others: it is one of every `statistics_every`."""
    batch: Any = None
    result: Any = None
    """What it returned."""
    is_skipped: bool = False
    """A gradient scaler left it out."""
    num_backward: int = 0
    num_optimizer_steps: int = 0
    """Of optimizers that hold parameters of the models."""
    is_accelerated: bool = False
    """An Accelerator of accelerate's is in the loop."""
    _named: dict[str, Tensor] | None = field(default=None, repr=False)

    def inputs(self) -> dict[str, Tensor]:
        """Name -> tensor of any shape and dtype, of the batch; of a sequence `0`, `1`."""
        if self._named is None:
            self._named = {}
            for name, tensor in named_tensors("", self.batch):
                self._named[name.lstrip(".") or "batch"] = tensor
                if len(self._named) == _MAX_NAMED:
                    break
        return self._named


def in_groups(optimizers: list[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(optimizer, group) pairs."""
    for optimizer in optimizers:
        for group in getattr(optimizer, "param_groups", ()):
            yield optimizer, group


def is_sharded(parameter: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return hasattr(parameter, "to_local")


def is_half(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and torch.finfo(dtype).bits <= 16
