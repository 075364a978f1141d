"""Checks of check-forward on the model's structure: parameter counts, cross-attention, the widened conv_in."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from shadowlab.checks import Check
from shadowlab.encoded_batch import LATENT_CHANNELS
from shadowlab.models import (
    ModelSpec,
    architecture_config,
    conv_in_before,
    cross_attention_modules,
    embedded_parameters,
    remove_cross_attention,
    widened_from,
)
from shadowlab.seeding import normal
from shadowlab.settings import Config
from shadowlab.tasks import Task

SDXL_VAE_PARAMETERS = 83_653_863


def structure(config: Config, unet: UNet2DConditionModel, task: Task[Any]) -> list[Check]:
    """That the model is the one that the task specifies."""
    checks = [*parameters(config, unet, task), cross_attention(unet, task.spec)]
    if task.spec.in_channels > LATENT_CHANNELS:  # else nothing is concatenated
        checks.append(new_channels(unet, task.spec, config))
    return checks


def expected_parameters(unet: UNet2DConditionModel, config: Config, spec: ModelSpec) -> int:
    """Parameters of the configured base, less what the specification takes out, plus wider conv_in and projection.

    Random weights: from the architecture's published configuration. Loaded weights: from their own, changed already.
    """
    random = config.model.weights == "random"
    with torch.device("meta"):
        wanted = architecture_config(config.model.architecture) if random else unet.config
        base = UNet2DConditionModel.from_config(wanted)
    if not spec.keeps_cross_attention:
        remove_cross_attention(base)
    count = sum(p.numel() for name, p in base.named_parameters() if not name.startswith("add_embedding"))
    if random:
        width, embedding = base.conv_in.out_channels, base.time_embedding.linear_2.out_features
        count += (spec.in_channels - base.conv_in.in_channels) * width * 9
        if spec.embedding_dim is not None:
            count += (spec.embedding_dim + 1) * embedding + (embedding + 1) * embedding
    return count


def parameters(config: Config, unet: UNet2DConditionModel, task: Task[Any]) -> list[Check]:
    """Exact counts: the published ones where the task knows them, arithmetic on the base configuration otherwise."""
    tensors = list(unet.parameters())
    count = sum(p.numel() for p in tensors)
    seen = f"{count:,} in {len(tensors):,} tensors"
    vae_count = task.vae.num_parameters
    published = task.spec.published.get(config.model.architecture)
    if published is not None:
        wanted = f"{published[0]:,} in {published[1]:,} tensors"
        right = (count, len(tensors)) == published
    else:
        expected = expected_parameters(unet, config, task.spec)
        wanted, right = f"{expected:,}", count == expected
    vae_wanted = embedded_parameters(config.model.vae_source)
    if config.model.architecture in ("sdxl", "sd15", "sd15-inpainting", "sd21"):  # one architecture, other weights
        vae_wanted = SDXL_VAE_PARAMETERS
    fix = "model.weights is not of this architecture; check model.architecture"
    checks = [Check("UNet parameters", right, wanted, seen, fix), *_trainable(config, unet, task.spec)]
    if vae_wanted is not None:
        fix = "model.vae is another VAE; its latents would not be those that the UNet knows"
        checks.append(Check("VAE parameters", vae_count == vae_wanted, f"{vae_wanted:,}", f"{vae_count:,}", fix))
    return checks


def _trainable(config: Config, unet: UNet2DConditionModel, spec: ModelSpec) -> list[Check]:
    """The exact count of what trains, where the task knows it and the configuration trains what the task does."""
    known = spec.published_trainable.get(config.model.architecture)
    if known is None or config.train.trainable is not None:
        return []
    tensors = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in tensors)
    return [
        Check(
            "parameters that train",
            (count, len(tensors)) == known,
            f"{known[0]:,} in {known[1]:,} tensors ({', '.join(spec.trainable)})",
            f"{count:,} in {len(tensors):,} tensors",
            "something was frozen or thawed on the way: shadowlab/training/trainee.py, prepare_unet",
        )
    ]


def cross_attention(unet: UNet2DConditionModel, spec: ModelSpec) -> Check:
    left = cross_attention_modules(unet)
    if spec.keeps_cross_attention:
        fix = "the weights were saved without cross-attention; take those of the whole model"
        return Check("cross-attention is kept", bool(left), "1 module or more", f"{len(left)} modules", fix)
    return Check(
        "no cross-attention left",
        not left,
        "0 modules",
        f"{len(left)} modules{': ' + left[0] if left else ''}",
        "call remove_cross_attention; a processor that returns its input adds LayerNorm(h) to h",
    )


@torch.no_grad()
def new_channels(unet: UNet2DConditionModel, spec: ModelSpec, config: Config) -> Check:
    """A freshly widened conv_in gives the base model's output: whatever the new channels hold where they start at zero,
    for copies of one input where the weights were repeated."""
    zero = spec.widening == "zero"
    name = "conv_in ignores the new channels at init" if zero else "conv_in takes copies of an input for it at init"
    conv, before = unet.conv_in, widened_from(unet)
    if before is None:
        norm = float(conv.weight[:, LATENT_CHANNELS:].norm())
        seen = f"{conv.in_channels} channels came with the weights; norm of the new ones {norm:.3g}"
        return Check(
            name, norm > 0, "widened just now, or trained new channels", seen, "train the weights, or widen them"
        )
    x = normal((1, conv.in_channels, 16, 16), config.seed, "widening").to(conv.weight)
    if zero:
        bare = x.clone()
        bare[:, LATENT_CHANNELS:] = 0
        change, limit = float((conv(x) - conv(bare)).abs().amax()), 0.0
    else:
        one, copies = x[:, :before], conv.in_channels // before
        weight, bias = conv_in_before(unet)
        whole_bias = None if bias is None else bias.to(x)
        old = torch.nn.functional.conv2d(one, weight.to(x), whole_bias, padding=conv.padding)
        whole = conv(torch.cat([one.repeat(1, copies, 1, 1), x[:, copies * before :]], dim=1))
        change, limit = float((whole - old).abs().amax()), 1e-3 * float(old.abs().amax())
    fix = f"widen conv_in with rule `{spec.widening}`, before anything trains it"
    return Check(name, change <= limit, f"change {limit:.3g}", f"change {change:.3g}", fix)
