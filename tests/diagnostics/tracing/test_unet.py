"""The same on the kind of model this serves first: a diffusion UNet with attention, skips and checkpointing."""

import pytest
import torch
from torch import Tensor, nn

from diagnostics import LayerStatistics, explain
from diagnostics.modules import leaf_modules

diffusers = pytest.importorskip("diffusers")
MODULES = (
    "down_blocks.0.resnets.0.conv2",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
    "mid_block.resnets.0.time_emb_proj",
    "up_blocks.0.resnets.1.conv_shortcut",
)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def grown(values: Tensor) -> Tensor:
    """The second sample beyond the dtype's limit."""
    scale = torch.ones(len(values), dtype=values.dtype).view(-1, *[1] * (values.ndim - 1))
    scale[1] = torch.finfo(values.dtype).max
    return values * scale * scale


class BadBackward(torch.autograd.Function):
    """A kernel whose backward overflows for the second sample."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return grown(gradient)


def loss_of(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 2, 8, generator=generator)
    output = unet(x, torch.tensor([10.0, 500.0, 900.0]), text).sample
    loss = output.float().square().mean((1, 2, 3))
    loss.mean().backward()
    return loss.detach()


@pytest.mark.parametrize(("checkpointing", "precision"), [(False, None), (True, torch.float16), (True, torch.bfloat16)])
def test_faults_are_named(unet: nn.Module, checkpointing: bool, precision: torch.dtype | None):
    unet.enable_gradient_checkpointing() if checkpointing else unet.disable_gradient_checkpointing()

    def search():
        unet.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision is not None):
            return explain(lambda: loss_of(unet), model=unet)

    assert search() is None
    for name in MODULES:
        module = unet.get_submodule(name)
        hooks = {"forward": lambda m, i, output: grown(output), "backward": lambda m, i, o: BadBackward.apply(o)}
        for phase, hook in hooks.items():
            handle = module.register_forward_hook(hook)
            found = search()
            handle.remove()
            assert found is not None
            # Hooks of a module run outside it, in the call of its parent.
            assert found.module is not None and name.startswith(found.module)
            assert (found.phase, found.samples) == (phase, (1,))
            assert found.source is not None and found.source.startswith(__file__)


def test_every_leaf_has_both_statistics(unet: nn.Module):
    unet.disable_gradient_checkpointing()
    statistics = LayerStatistics(unet)
    with statistics.recording():
        loss_of(unet)
    seen = statistics.collect()
    unseen = set(leaf_modules(unet)) - set(seen)
    assert unseen == {name for name in unseen if isinstance(unet.get_submodule(name), nn.Dropout | nn.Identity)}
    without = {name for name, kinds in seen.items() if "gradient" not in kinds}
    assert without <= {"time_proj"}  # sinusoids of t: nothing to learn before them
