"""The specification of a training run, in torch and the standard library: nothing of shadowlab is imported.

Everything below is written from the documents, not from the code it is compared with, and plainly rather than fast.
What belongs to one task (pictures, conditions, x_t, target) stands in the task's own reference.

A run, whatever the task:

1. Objects are ranked by a hash; the first share of them is held out. The rest is read epoch after epoch, each in a
   random order of its own, and a step takes the next `world x accumulation x batch` positions of this stream:
   micro-batch m of process r the block m x world + r.
2. A sample's noise belongs to its position. t belongs to the step: one uniform offset, and equal gaps between samples.
3. The loss of a step is the mean over all its samples; gradients are those of this mean, whatever their way through
   micro-batches, processes and a loss scale. They are clipped by their global norm.
4. AdamW with the rate of the step, then the average of the weights, which is what is validated and generated with.

Legend: B batch, h w latents.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What matrix products and convolutions compute in; weights, norms and the embeddings of t and light stay float32."""
FIRST_SCALE = 65536.0
"""Of the loss under fp16; halved by each step whose gradients overflow, which then changes nothing."""


@dataclass(frozen=True)
class Plan:
    """What decides the numbers of a run."""

    seed: int
    max_steps: int
    batch_size: int
    accumulation: int
    world: int
    noise_share: float
    validation_fraction: float
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float
    schedule: str
    warmup_steps: int
    ema_decay: float | None

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulation * self.world


# Randomness: a function of (seed, purpose, counters) alone.


def seed_of(seed: int, purpose: str, *counters: object) -> int:
    """The upper 63 of the first 64 bits of SHA-256 of `seed/purpose/counter/...`."""
    text = "/".join(str(part) for part in (seed, purpose, *counters))
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest()[:16], 16) // 2


def generator(seed: int, purpose: str, *counters: object) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed_of(seed, purpose, *counters))


def normal(shape: Sequence[int], seed: int, purpose: str, *counters: object) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, purpose, *counters), dtype=torch.float32)


def order(length: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(length, generator=generator(seed, "order", epoch)).tolist()


# Data


def split(objects: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on, and those held out: whole objects, at least one on each side."""
    ranked = sorted(set(objects), key=lambda name: (seed_of(seed, "split", name), name))
    count = min(len(ranked) - 1, max(1, round(fraction * len(ranked))))
    held_out = [i for i, name in enumerate(objects) if name in ranked[:count]]
    return [i for i in range(len(objects)) if i not in held_out], held_out


def positions(plan: Plan, step: int, rank: int) -> list[list[int]]:
    """Of each micro-batch of a process in a 0-based step."""
    first, size = step * plan.global_batch, plan.batch_size
    blocks = [m * plan.world + rank for m in range(plan.accumulation)]
    return [[first + block * size + i for i in range(size)] for block in blocks]


def sample_at(position: int, length: int, seed: int) -> int:
    """Which of `length` training samples stands at a position of the stream."""
    return order(length, seed, position // length)[position % length]


# Noise and t


def noise_at(position: int, shape: Sequence[int], seed: int) -> Tensor:
    return normal(shape, seed, "noise", position)


def times(plan: Plan, step: int, stream: Iterable[int]) -> Tensor:
    """t of the samples at these positions, float32 in [0, 1); with a noise share, that share of them is 0."""
    offset = float(torch.rand((), generator=generator(plan.seed, "t", step), dtype=torch.float64))
    found = []
    for position in stream:
        t = math.fmod(offset + (position - step * plan.global_batch) / plan.global_batch, 1.0)
        if plan.noise_share > 0:
            t = 0.0 if t < plan.noise_share else (t - plan.noise_share) / (1.0 - plan.noise_share)
        rounded = torch.tensor(t, dtype=torch.float32)
        found.append(rounded if rounded < 1 else torch.zeros(()))
    return torch.stack(found)


# Gradients


@dataclass(frozen=True)
class MicroBatch:
    """What the model is given, and the loss of what it gives, (B,)."""

    sample: Tensor
    timesteps: Tensor
    tokens: Tensor | None
    embedding: Tensor | None
    loss: Callable[[Tensor], Tensor]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    dtype = AUTOCAST[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def predicted(model: nn.Module, one: MicroBatch, precision: str) -> Tensor:
    with autocast(precision, one.sample.device):
        output = model(one.sample, one.timesteps, one.tokens, class_labels=one.embedding).sample
    return output.float()


def gradients(
    model: nn.Module, micro_batches: Sequence[MicroBatch], precision: str, scale: float
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Predictions, losses (B,), and gradients of the mean loss of all micro-batches (of all processes).

    scale: what the loss is multiplied by, and gradients divided by: those that overflow under it are not finite.
    """
    model.zero_grad(set_to_none=True)
    predictions, losses = [], []
    for one in micro_batches:
        prediction = predicted(model, one, precision)
        own = one.loss(prediction)
        (own.mean() / len(micro_batches) * scale).backward()
        predictions.append(prediction.detach())
        losses.append(own.detach())
    found = {name: p.grad / scale for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return predictions, losses, found


def norm_of(tensors: Tensors) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def clipped(tensors: Tensors, limit: float) -> dict[str, Tensor]:
    """Scaled down together where their norm is above the limit."""
    factor = min(1.0, limit / (norm_of(tensors) + 1e-6))
    return {name: tensor * factor for name, tensor in tensors.items()}


# Optimizer


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up whose first step moves already, then constant, or half a cosine to zero at the last."""
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return plan.learning_rate
    share = (step - plan.warmup_steps) / max(1, plan.max_steps - plan.warmup_steps)
    return plan.learning_rate * (1.0 + math.cos(math.pi * min(1.0, share))) / 2


@dataclass
class AdamW:
    """Loshchilov and Hutter, 2019: the decay is decoupled from the gradient, both moments are corrected."""

    plan: Plan
    count: int = 0
    mean: dict[str, Tensor] = field(default_factory=dict)
    square: dict[str, Tensor] = field(default_factory=dict)

    def step(self, weights: Tensors, grads: Tensors, rate: float) -> dict[str, Tensor]:
        """The weights after it, float32."""
        self.count += 1
        plan, after = self.plan, {}
        for name, gradient in grads.items():
            zero = torch.zeros_like(gradient)
            self.mean[name] = plan.beta1 * self.mean.get(name, zero) + (1 - plan.beta1) * gradient
            self.square[name] = plan.beta2 * self.square.get(name, zero) + (1 - plan.beta2) * gradient * gradient
            mean = self.mean[name] / (1 - plan.beta1**self.count)
            square = self.square[name] / (1 - plan.beta2**self.count)
            decayed = weights[name] * (1 - rate * plan.weight_decay)
            after[name] = decayed - rate * mean / (square.sqrt() + plan.eps)
        return after


def averaged(average: Tensors, weights: Tensors, updates: int, ceiling: float) -> dict[str, Tensor]:
    """The average after `updates` earlier ones: the first copies, later ones keep min(ceiling, (1 + n) / (10 + n))."""
    keep = 0.0 if updates == 0 else min(ceiling, (1 + updates) / (10 + updates))
    return {name: keep * average.get(name, weight) + (1 - keep) * weight for name, weight in weights.items()}


# Judgement


def grid_noise(sample_id: str, draw: int, shape: Sequence[int], seed: int) -> Tensor:
    """The noise that a held-out sample always meets."""
    return normal(shape, seed, "grid", sample_id, draw)


def explained(generated: Tensor, truth: Tensor) -> float:
    """R^2 about the mean of each channel, (B, C, h, w) both."""
    generated, truth = generated.double(), truth.double()
    spread = (truth - truth.mean(dim=(0, 2, 3), keepdim=True)).square().sum()
    return float(1 - (generated - truth).square().sum() / spread)
