"""What the drills put in, in the order of a step's phases; each takes its fault out again."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from shadowlab.encoded_batch import EncodedBatch
from shadowlab.training import Trainee

VICTIM = 2  # the sample that is hurt where one is
DRIFTING = "up_blocks.1.resnets.0.conv1"  # a norm follows: neither loss nor gradients show that it grows
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"


@contextmanager
def _hooked(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`change` applied to what a module returns."""
    handle = module.register_forward_hook(lambda module, inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def _rows(like: Tensor, at_victim: float, elsewhere: float) -> Tensor:
    """(B, 1, ...): one number for the victim and another for the rest."""
    row = torch.arange(len(like)).reshape(-1, *[1] * (like.ndim - 1))
    return torch.where(row == VICTIM, at_victim, elsewhere).to(like)


# State and data


@contextmanager
def nan_weight(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    with torch.no_grad():
        trainee.unet.conv_out.weight[0, 3, 1, 1] = math.nan
    yield batch


@contextmanager
def poisoned_moment(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    state = trainee.optimizer.state[trainee.unet.conv_in.weight]
    state["exp_avg_sq"][0, 0] = math.nan
    yield batch


@contextmanager
def nan_latent(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    data = batch.data.clone()
    data[VICTIM, 0, 1, 1] = math.nan
    yield replace(batch, data=data)


# Forward


@contextmanager
def attention_overflow(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    with torch.no_grad():
        trainee.unet.get_submodule(f"{ATTENTION}.to_v").weight.mul_(1e5)
    yield batch


@contextmanager
def exponential(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(output: Tensor) -> Tensor:
        gate = torch.exp(output * 0 + _rows(output, 100.0, 0.0))  # origin
        return output * gate

    with _hooked(trainee.unet.conv_out, change):
        yield batch


@contextmanager
def division(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(output: Tensor) -> Tensor:
        kept = output * _rows(output, 0.0, 1.0)
        scale = kept.square().mean((1, 2, 3), keepdim=True).sqrt()
        return kept / scale  # origin

    with _hooked(trainee.unet.mid_block, change):
        yield batch


@contextmanager
def masked_row(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(output: Tensor) -> Tensor:
        tokens = output.flatten(2).transpose(1, 2)  # (B, N, C)
        hidden = _rows(tokens, 1.0, 0.0).bool()[..., 0:1]  # an empty mask image: nothing is left to look at
        weights = (tokens @ tokens.transpose(1, 2)).masked_fill(hidden, -math.inf).softmax(-1)  # origin
        return output + (weights @ tokens).transpose(1, 2).reshape(output.shape)

    with _hooked(trainee.unet.mid_block.resnets[0], change):
        yield batch


@contextmanager
def drifting(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    layer = trainee.unet.get_submodule(DRIFTING)
    original = layer.forward

    def in_half(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):  # this layer alone: the drill takes a tenth of the time
            return original(x)

    with torch.no_grad():
        layer.weight.mul_(2.0**11)  # where a long run would have got to
    with patch.object(layer, "forward", in_half):
        yield batch


def drift(trainee: Trainee) -> None:
    """An eighth of a bit in every step."""
    with torch.no_grad():
        trainee.unet.get_submodule(DRIFTING).weight.mul_(2.0**0.125)


# Loss and backward


@contextmanager
def _loss(trainee: Trainee, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`change` applied to the loss of each sample."""
    original = trainee.objective.loss

    def changed(prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return change(original(prediction, noise, data, t))

    with patch.object(trainee.objective, "loss", changed):
        yield


@contextmanager
def loss_weight(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(per_sample: Tensor) -> Tensor:
        t = _rows(per_sample, 1.0, 0.5)
        weight = 1 / (1 - t)  # origin
        return weight * per_sample

    with _loss(trainee, change):
        yield batch


@contextmanager
def root_at_zero(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(per_sample: Tensor) -> Tensor:
        matched = per_sample * _rows(per_sample, 0.0, 1.0)
        return matched.sqrt()  # origin

    with _loss(trainee, change):
        yield batch


# Gradients


class _Magnified(torch.autograd.Function):
    """A kernel whose backward is too large by far, whatever the scale."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.sign() * 3e38 * 3e38


@contextmanager
def scaler_collapse(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(output: Tensor) -> Tensor:
        return _Magnified.apply(output)  # origin

    with _hooked(trainee.unet.conv_out, change):
        yield batch


@contextmanager
def norm_overflow(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def in_float32(norms: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(norms)).float().norm()  # origin

    handle = trainee.unet.conv_in.weight.register_hook(lambda gradient: gradient.sign() * 1e38)
    try:
        with patch("shadowlab.training.step.total_norm", in_float32):
            yield batch
    finally:
        handle.remove()


# Optimizer and average


@contextmanager
def eps_underflow(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    """Nothing is injected: the default eps of AdamW, 1e-8, is zero in float16."""
    yield batch


@contextmanager
def bad_rate(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    with patch("shadowlab.training.step.learning_rate", lambda config, number, max_steps: math.nan):
        yield batch


@contextmanager
def average_overflow(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    assert trainee.ema is not None
    for average in trainee.ema.shadow_params:
        average.data = average.data.half()
    with torch.no_grad():
        trainee.unet.conv_in.weight[:, -1] = 1e6  # of the mask's channel, which is empty in this batch
    assert batch.conditions.concatenated is not None
    concatenated = batch.conditions.concatenated.clone()
    concatenated[:, -1] = 0
    yield batch.with_conditions(concatenated=concatenated)


# Nothing to find


@contextmanager
def masked_attention(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(output: Tensor) -> Tensor:
        tokens = output.flatten(2).transpose(1, 2)  # (B, N, C)
        hidden = torch.arange(tokens.shape[1]) % 2 == 1
        weights = (tokens @ tokens.transpose(1, 2)).masked_fill(hidden, -math.inf).softmax(-1)
        return output + (weights @ tokens).transpose(1, 2).reshape(output.shape)

    with _hooked(trainee.unet.mid_block.resnets[0], change):
        yield batch
