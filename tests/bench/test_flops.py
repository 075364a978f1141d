"""Operations are counted, not guessed: against the closed forms of layers, on real and on meta tensors."""

from typing import Any

import pytest
import torch
from torch import nn

from shadowlab.bench.flops import matrix_tflops, share_reached, training_flops, unet_without_memory
from shadowlab.encoded_batch import Conditions
from shadowlab.models.adapter import predict
from tests import tiny


def closed_form(unet: Any, batch: int, size: int) -> int:
    """Forward: 2 x outputs x inputs of each, and 4 L^2 D of each attention. Backward: twice that, by input and by
    weight; layers whose input is no function of a weight need one of the two."""
    forward: dict[nn.Module, int] = {}
    attention = 0

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        per_output = module.weight[0].numel()
        forward[module] = forward.get(module, 0) + 2 * output.numel() * per_output

    def note_attention(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal attention
        batch, length, width = output.shape
        attention += 4 * batch * length**2 * width

    handles = [m.register_forward_hook(note) for m in unet.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles += [m.register_forward_hook(note_attention) for n, m in unet.named_modules() if n.endswith("attn1")]
    x_t, concatenated = (torch.randn(batch, c, size, size) for c in (4, 5))
    with torch.no_grad():
        predict(unet, x_t, 1000 * torch.rand(batch), Conditions(concatenated, torch.randn(batch, 768)))
    for handle in handles:
        handle.remove()
    first = [unet.conv_in, unet.time_embedding.linear_1, unet.class_embedding.linear_1]
    return 3 * (sum(forward.values()) + attention) - sum(forward[layer] for layer in first)


@pytest.mark.parametrize(("batch", "size"), [(1, 4), (3, 8)])
def test_the_count_is_the_closed_form(hub_folder, batch: int, size: int) -> None:
    unet = tiny.shadow_unet(hub_folder)
    assert training_flops(unet.to("meta"), batch, size) == closed_form(tiny.shadow_unet(hub_folder), batch, size)


def test_full_sdxl_is_counted_without_its_memory() -> None:
    unet = unet_without_memory("sdxl")
    assert {p.device.type for p in unet.parameters()} == {"meta"}
    num_parameters = sum(p.numel() for p in unet.parameters())
    assert 2.0e9 < num_parameters < 2.05e9
    # A weight is used at each place that it sees; most of them are where 16 x 16 latents are 4 x 4, or 8 x 8.
    assert 6 * num_parameters * 4 * 4 < training_flops(unet, 1, 16) < 6 * num_parameters * 8 * 8


def test_rates_are_of_the_chip_and_the_precision() -> None:
    assert matrix_tflops("NVIDIA H100 80GB HBM3", "bf16") == 989.4
    assert matrix_tflops("NVIDIA H100 PCIe", "bf16") == 756.0
    assert matrix_tflops("NVIDIA A100-SXM4-80GB", "tf32") == 156.0
    assert matrix_tflops("Some other chip", "bf16") is None
    assert share_reached(494.7e12, 2.0, "NVIDIA H100 80GB HBM3", "tf32") == pytest.approx(0.5)
    assert share_reached(1.0, 1.0, "Some other chip", "tf32") is None
