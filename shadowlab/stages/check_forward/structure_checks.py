"""Checks of check-forward on the model's structure: parameter counts, cross-attention, the widened conv_in."""

import torch
from diffusers import UNet2DConditionModel

from shadowlab.models import (
    LATENT_CHANNELS,
    architecture_config,
    cross_attention_modules,
    embedded_parameters,
    remove_cross_attention,
    was_widened,
)
from shadowlab.seeding import normal
from shadowlab.settings import Config
from shadowlab.stages.check_forward.report import Check
from shadowlab.tasks import Task

SDXL_UNET_PARAMETERS, SDXL_UNET_TENSORS = 2_019_019_844, 1_190
SDXL_VAE_PARAMETERS = 83_653_863


def expected_parameters(unet: UNet2DConditionModel, config: Config, task: Task) -> int:
    """Parameters of the configured base, less cross-attention and text path, plus wider conv_in and projection.

    Random weights: from the architecture's published configuration. Loaded weights: from their own, changed already.
    """
    random = config.model.weights == "random"
    with torch.device("meta"):
        wanted = architecture_config(config.model.architecture) if random else unet.config
        base = UNet2DConditionModel.from_config(wanted)
    remove_cross_attention(base)
    count = sum(p.numel() for name, p in base.named_parameters() if not name.startswith("add_embedding"))
    if random:
        width, embedding = base.conv_in.out_channels, base.time_embedding.linear_2.out_features
        count += (task.in_channels - base.conv_in.in_channels) * width * 9
        count += (task.embedding_dim + 1) * embedding + (embedding + 1) * embedding
    return count


def parameters(config: Config, unet: UNet2DConditionModel, task: Task) -> list[Check]:
    """Exact counts: the published ones for SDXL, arithmetic on the base configuration otherwise."""
    tensors = list(unet.parameters())
    count = sum(p.numel() for p in tensors)
    seen = f"{count:,} in {len(tensors):,} tensors"
    vae_count = task.vae.num_parameters
    if config.model.architecture == "sdxl":
        wanted = f"{SDXL_UNET_PARAMETERS:,} in {SDXL_UNET_TENSORS:,} tensors"
        right = (count, len(tensors)) == (SDXL_UNET_PARAMETERS, SDXL_UNET_TENSORS)
        vae_wanted: int | None = SDXL_VAE_PARAMETERS
    else:
        expected = expected_parameters(unet, config, task)
        wanted, right = f"{expected:,}", count == expected
        vae_wanted = embedded_parameters() if config.model.vae_source == "embedded" else None
    mend = "model.weights is not of this architecture; check model.architecture"
    checks = [Check("UNet parameters", right, wanted, seen, mend)]
    if vae_wanted is not None:
        mend = "model.vae is another VAE; its latents would not be those that the UNet knows"
        checks.append(Check("VAE parameters", vae_count == vae_wanted, f"{vae_wanted:,}", f"{vae_count:,}", mend))
    return checks


def cross_attention_is_gone(unet: UNet2DConditionModel) -> Check:
    left = cross_attention_modules(unet)
    return Check(
        "no cross-attention left",
        not left,
        "0 modules",
        f"{len(left)} modules{': ' + left[0] if left else ''}",
        "call remove_cross_attention; a processor that returns its input adds LayerNorm(h) to h",
    )


@torch.no_grad()
def new_channels_are_ignored(unet: UNet2DConditionModel, config: Config) -> Check:
    """A freshly widened conv_in gives the base model's output whatever the new channels hold."""
    name = "conv_in ignores the new channels at init"
    conv = unet.conv_in
    if not was_widened(unet):
        norm = float(conv.weight[:, LATENT_CHANNELS:].norm())
        seen = f"{conv.in_channels} channels came with the weights; norm of the new ones {norm:.3g}"
        return Check(
            name, norm > 0, "widened just now, or trained new channels", seen, "train the weights, or widen them"
        )
    x = normal((1, conv.in_channels, 16, 16), config.seed, "widening").to(conv.weight)
    bare = x.clone()
    bare[:, LATENT_CHANNELS:] = 0
    change = float((conv(x) - conv(bare)).abs().amax())
    mend = "widen conv_in with rule `zero`, before anything trains it"
    return Check(name, change == 0.0, "change 0", f"change {change:.3g}", mend)
