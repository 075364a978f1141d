"""Operations of a training step, counted without a GPU or memory, and what chips can do in a second."""

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shadowlab.bench.trial import SPEC
from shadowlab.encoded_batch import LATENT_CHANNELS, Conditions
from shadowlab.models import architecture_config, predict, unwritten_unet

# Dense matrix rates in TFLOP/s, without sparsity, from NVIDIA's data sheets "H100 Tensor Core GPU" (SXM5 and PCIe),
# "H200 Tensor Core GPU", "A100 Tensor Core GPU" and "L40S". fp32 is the rate outside tensor cores. Keys are the
# beginnings of what torch.cuda.get_device_name() says; the longest that fits holds.
_MATRIX_TFLOPS: dict[str, dict[str, float]] = {
    "NVIDIA H100 80GB HBM3": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA H100 PCIe": {"fp32": 51.2, "tf32": 378.0, "bf16": 756.0, "fp16": 756.0},
    "NVIDIA H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0},
    "NVIDIA L40S": {"fp32": 91.6, "tf32": 183.0, "bf16": 362.05, "fp16": 362.05},
}


def matrix_tflops(device_name: str, precision: str) -> float | None:
    """What the chip can do in TFLOP/s; None where the table has no such chip or precision."""
    fitting = [name for name in _MATRIX_TFLOPS if device_name.startswith(name)]
    return _MATRIX_TFLOPS[max(fitting, key=len)].get(precision) if fitting else None


def share_reached(flops: float, seconds: float, device_name: str, precision: str) -> float | None:
    """Share of the chip's matrix rate that `flops` in `seconds` make; None where the rate is not known."""
    rate = matrix_tflops(device_name, precision)
    return None if rate is None else flops / seconds / (rate * 1e12)


def training_flops(unet: nn.Module, batch: int, size: int) -> int:
    """Floating-point operations of matrix products and convolutions in one forward and backward pass.

    A multiplication and its addition are two. What gradient checkpointing repeats is not counted: it is no progress.

    Args:
        unet: on any device; on `meta` nothing is computed. size: height and width of the latents.
    """
    weight = next(unet.parameters())
    x_t = torch.empty(batch, LATENT_CHANNELS, size, size, device=weight.device)
    conditions = Conditions(
        concatenated=torch.empty(batch, SPEC.in_channels - LATENT_CHANNELS, size, size, device=weight.device),
        embedding=torch.empty(batch, SPEC.embedding_dim or 0, device=weight.device),
    )
    with FlopCounterMode(display=False) as counter:
        timesteps = torch.full((batch,), 500.0, device=weight.device)
        predict(unet, x_t, timesteps, conditions).sum().backward()
    unet.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def unet_without_memory(architecture: str) -> UNet2DConditionModel:
    """The UNet as this project trains it, on the meta device."""
    with torch.device("meta"):
        return unwritten_unet(architecture_config(architecture), SPEC)
