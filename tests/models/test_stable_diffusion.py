"""SD 1.5's and 2.1's UNets with 8 input channels, on the meta device: exact counts, and the rule of widening."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from shadowlab.models import ModelSpec, adapt, architecture_config, conv_in_before, unwritten_unet
from shadowlab.tasks.albedo.task import AlbedoTask
from tests import tiny

BEFORE = {"sd15": 859_520_964, "sd21": 865_910_724}  # of the published models
NEW = 4 * 320 * 3 * 3  # weights of conv_in


@pytest.mark.parametrize(("name", "width"), [("sd15", 768), ("sd21", 1024)])
def test_the_published_configuration_gives_the_published_counts(name: str, width: int) -> None:
    config = architecture_config(name)
    with torch.device("meta"):
        base = UNet2DConditionModel.from_config(config)
        unet = unwritten_unet(config, AlbedoTask.spec)
    assert sum(p.numel() for p in base.parameters()) == BEFORE[name]
    found = sum(p.numel() for p in unet.parameters()), len(list(unet.parameters()))
    assert found == (BEFORE[name] + NEW, 686) == AlbedoTask.spec.published[name]
    assert unet.conv_in.weight.shape == (320, 8, 3, 3) and unet.config.in_channels == 8
    assert config["cross_attention_dim"] == width


def test_widening_repeats_and_halves_and_keeps_the_bias() -> None:
    unet = tiny.hub_unet()
    weight, bias = unet.conv_in.weight.detach().clone(), unet.conv_in.bias.detach().clone()
    adapt(unet, ModelSpec(8, ("x_t", "beauty"), "repeat", keeps_cross_attention=True))
    assert torch.equal(unet.conv_in.weight, torch.cat([weight, weight], dim=1) / 2)
    assert torch.equal(unet.conv_in.bias, bias)
    kept = conv_in_before(unet)
    assert torch.equal(kept[0], weight) and kept[1] is not None and torch.equal(kept[1], bias)
    x = torch.randn(1, 4, 8, 8)
    old = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    assert torch.allclose(unet.conv_in(torch.cat([x, x], dim=1)), old, atol=1e-5)
