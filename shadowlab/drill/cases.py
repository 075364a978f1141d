"""The drills, in the order of a step's phases."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from shadowlab.drill.case import Drill, Forecast
from shadowlab.tasks import EncodedBatch
from shadowlab.training import Trainee, step

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
def _loss(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`change` applied to the loss of each sample."""
    original = step.loss_per_sample

    def changed(predicted: Tensor, target: Tensor) -> Tensor:
        return change(original(predicted, target))

    with patch.object(step, "loss_per_sample", changed):
        yield


@contextmanager
def loss_weight(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(per_sample: Tensor) -> Tensor:
        t = _rows(per_sample, 1.0, 0.5)
        weight = 1 / (1 - t)  # origin
        return weight * per_sample

    with _loss(change):
        yield batch


@contextmanager
def root_at_zero(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    def change(per_sample: Tensor) -> Tensor:
        matched = per_sample * _rows(per_sample, 0.0, 1.0)
        return matched.sqrt()  # origin

    with _loss(change):
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
        with patch.object(step, "total_norm", in_float32):
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
    with patch.object(step, "learning_rate", lambda config, number, max_steps: math.nan):
        yield batch


@contextmanager
def average_overflow(trainee: Trainee, batch: EncodedBatch) -> Iterator[EncodedBatch]:
    assert trainee.ema is not None
    for average in trainee.ema.shadow_params:
        average.data = average.data.half()
    with torch.no_grad():
        trainee.unet.conv_in.weight[:, -1] = 1e6  # of the mask's channel, which is empty in this batch
    concatenated = batch.concatenated.clone()
    concatenated[:, -1] = 0
    yield replace(batch, concatenated=concatenated)


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


DRILLS: tuple[Drill, ...] = (
    Drill(
        "nan-weight",
        "state",
        "one weight of conv_out is NaN, as after a checkpoint that was saved too late",
        "Rikorose/DeepFilterNet#30",
        nan_weight,
        {"exception": None, "cause": "bad_state", "parameter": "conv_out.weight", "module": "conv_out"},
    ),
    Drill(
        "poisoned-moment",
        "state",
        "AdamW's second moment of conv_in holds a NaN; weights and gradients are sound",
        "deepspeedai/DeepSpeed#8035",
        poisoned_moment,
        {"exception": None, "cause": "bad_state", "parameter": "conv_in.weight.exp_avg_sq"},
        assignments=("diagnostics.statistics_every=1",),  # states are checked with full statistics
    ),
    Drill(
        "nan-latent",
        "data",
        "a cached latent of one sample holds a NaN",
        "huggingface/diffusers#7563",
        nan_latent,
        {"exception": None, "cause": "bad_data", "parameter": "data", "samples": (VICTIM,)},
    ),
    Drill(
        "attention-overflow",
        "forward",
        "values of the middle attention exceed float16's 65504",
        "showlab/Tune-A-Video#103",
        attention_overflow,
        {"exception": "overflow", "cause": "overflow", "module": f"{ATTENTION}.to_v"},
        precision="fp16",
    ),
    Drill(
        "exponential",
        "forward",
        "a gate is exp(100) in float32 for one sample",
        "pytorch/pytorch#18287",
        exponential,
        {"exception": "overflow", "cause": "overflow", "op": "exp", "samples": (VICTIM,)},
    ),
    Drill(
        "division",
        "forward",
        "a norm without eps divides a sample that is all zero by its root mean square",
        "pytorch/pytorch#2721",
        division,
        {"exception": "invalid", "cause": "out_of_domain", "op": "div", "samples": (VICTIM,)},
    ),
    Drill(
        "masked-row",
        "forward",
        "attention of one sample has every key masked, so that softmax has nothing to normalise",
        "Zhen-Dong/Magic-Me#14",
        masked_row,
        {"exception": "invalid", "cause": "masked_row", "samples": (VICTIM,)},
    ),
    Drill(
        "drift",
        "forward",
        "float16 activations ahead of a norm grow by a twelfth in every step, unseen in the loss, until they overflow",
        "huggingface/diffusers#9096",
        drifting,
        {"exception": "overflow", "cause": "overflow", "module": DRIFTING},
        num_steps=60,
        assignments=("diagnostics.statistics_every=2",),
        each_step=drift,
        forecast=Forecast(DRIFTING),
    ),
    Drill(
        "loss-weight",
        "loss",
        "the loss is weighted by 1 / (1 - t), and t of one sample is 1",
        "kohya-ss/sd-scripts#673",
        loss_weight,
        {"exception": "divide_by_zero", "cause": "out_of_domain", "op": "reciprocal"},
    ),
    Drill(
        "root-at-zero",
        "backward",
        "the loss of one sample is the square root of exactly zero: finite, its gradient is not",
        "pytorch/pytorch#2721",
        root_at_zero,
        {"exception": "divide_by_zero", "cause": "out_of_domain", "samples": (VICTIM,)},
    ),
    Drill(
        "scaler-collapse",
        "backward",
        "gradients overflow at every scale, so that the gradient scaler would halve it for ever",
        "openai/guided-diffusion#50",
        scaler_collapse,
        {"exception": "overflow", "cause": "overflow"},
        precision="fp16",
        num_steps=4,
        num_healthy_steps=0,
        assignments=("train.max_consecutive_skips=3",),
    ),
    Drill(
        "norm-overflow",
        "clip",
        "every gradient is finite, their norm in float32 is not: clip_grad_norm_ would make all of them zero",
        "pytorch/pytorch#46849",
        norm_overflow,
        {"exception": "overflow", "cause": "overflow"},
    ),
    Drill(
        "eps-underflow",
        "optimizer",
        "AdamW on float16 weights, where its eps of 1e-8 is zero",
        "pytorch/pytorch#147437",
        eps_underflow,
        {"cause": "underflow", "op": "addcdiv", "parameter": "conv_in.weight"},
        precision="fp16-pure",
        num_healthy_steps=0,
        assignments=("allow_unsafe=true",),
    ),
    Drill(
        "nan-rate",
        "optimizer",
        "the learning rate that a schedule returns is NaN",
        "facebookresearch/dadaptation#4",
        bad_rate,
        {"exception": None, "cause": "bad_scalar"},
    ),
    Drill(
        "average-overflow",
        "ema",
        "the average was cast to float16 for validation; a weight of 1e6 does not fit",
        "ultralytics/ultralytics#24731",
        average_overflow,
        {"exception": "overflow", "cause": "overflow", "op": "sub"},
    ),
    Drill(
        "masked-attention",
        "benign",
        "an attention mask of -inf that leaves every row something: no finding",
        "google/flax#4093",
        masked_attention,
        None,
    ),
)
