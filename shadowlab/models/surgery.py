"""Changes to a UNet, made the same way to random and to loaded weights; the optimizer must be built afterwards.

Legend: C channels, D width of the time embedding.

- cross-attention is removed (`attn2 = norm2 = None`), not replaced by a processor that returns its input,
  which would leave every block adding LayerNorm(h) to h;
- SDXL's text path (`add_embedding`) goes; an embedding comes in through `class_embedding`, E -> D -> D, added to the
  time embedding;
- `conv_in` is widened; parameters are frozen.
"""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from shadowlab.errors import UserError
from shadowlab.models.spec import ModelSpec, Widening


def adapt(unet: UNet2DConditionModel, spec: ModelSpec) -> None:
    """Make a UNet whose cross-attention is as the specification says into the task's, in place."""
    remove_text_embedding(unet)
    if spec.embedding_dim is not None:
        add_embedding_input(unet, spec.embedding_dim)
    widen_conv_in(unet, spec.in_channels, spec.widening)


def remove_cross_attention(unet: UNet2DConditionModel) -> None:
    """Drop `attn2` and its `norm2` from every transformer block (70 blocks in SDXL), in place."""
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.attn2 = None
            module.norm2 = None
    unet.encoder_hid_proj = None


def cross_attention_modules(unet: nn.Module) -> list[str]:
    """Dotted names of cross-attention still present; empty after `remove_cross_attention`."""
    return [name for name, module in unet.named_modules() if name.endswith(("attn2", "encoder_hid_proj")) and module]


def add_embedding_input(unet: UNet2DConditionModel, embedding_dim: int) -> None:
    """A projection of an `embedding_dim` vector, added to the time embedding, in place.

    Raises:
        UserError: the weights bring a projection of another width.
    """
    if unet.config.class_embed_type == "projection":
        held = unet.class_embedding.linear_1.in_features
        if held != embedding_dim:
            raise UserError(f"the weights project an embedding of {held} values; this model needs {embedding_dim}")
        return
    time_embed_dim = unet.time_embedding.linear_2.out_features
    unet.class_embedding = TimestepEmbedding(embedding_dim, time_embed_dim)
    unet.register_to_config(class_embed_type="projection", projection_class_embeddings_input_dim=embedding_dim)


def remove_text_embedding(unet: UNet2DConditionModel) -> None:
    """Drop the pooled text and picture sizes that SDXL adds to the time embedding, in place."""
    unet.add_embedding = None
    unet.add_time_proj = None
    unet.register_to_config(addition_embed_type=None)


def widen_conv_in(unet: UNet2DConditionModel, in_channels: int, rule: Widening) -> None:
    """Give `conv_in` more input channels, in place.

    `zero`: the old channels are copied, the new ones start at zero, so the output is unchanged at first
    (paper, section 4). `repeat`: the weights are tiled over the new channels and divided by the number of
    copies, bias unchanged, so that equal inputs give the old output (Ke et al., Marigold, 2024). `repeat-zero`: as
    `repeat`, as often as the old channels fit in whole; channels that are left, such as a mask's, start at zero.
    """
    old = unet.conv_in
    if old.in_channels == in_channels:
        return
    if old.in_channels > in_channels or (rule == "repeat" and in_channels % old.in_channels):
        raise UserError(f"conv_in of {old.in_channels} channels cannot be widened to {in_channels} by rule `{rule}`")
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, padding=old.padding, bias=old.bias is not None)
    with torch.no_grad():
        new.weight.zero_()
        if rule == "zero":
            new.weight[:, : old.in_channels] = old.weight
        else:
            copies = in_channels // old.in_channels
            new.weight[:, : copies * old.in_channels] = old.weight.repeat(1, copies, 1, 1) / copies
            vars(new)["before"] = old.weight.detach(), None if old.bias is None else old.bias.detach()
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    unet.conv_in = new
    new.widened_from = old.in_channels
    unet.register_to_config(in_channels=in_channels)


def widened_from(unet: UNet2DConditionModel) -> int | None:
    """Input channels before `widen_conv_in` made this conv_in; None where its channels came with the weights."""
    return getattr(unet.conv_in, "widened_from", None)


def conv_in_before(unet: UNet2DConditionModel) -> tuple[Tensor, Tensor | None]:
    """Weight (D, 4, 3, 3) and bias (D,), float32 on the CPU, of the conv_in that `widen_conv_in` repeated."""
    return unet.conv_in.before


def freeze(unet: UNet2DConditionModel, trainable: Sequence[str]) -> None:
    """Let the parameters whose names match one of these shell patterns train, and no other, in place.

    Raises:
        UserError: a pattern matches no parameter, or nothing would train.
    """
    matched = dict.fromkeys(trainable, 0)
    for name, parameter in unet.named_parameters():
        own = [pattern for pattern in trainable if fnmatchcase(name, pattern)]
        parameter.requires_grad_(bool(own))
        for pattern in own:
            matched[pattern] += 1
    unused = next((pattern for pattern, count in matched.items() if not count), None)
    if unused is not None or not matched:
        names = [name for name, _ in unet.named_parameters()]
        close = difflib.get_close_matches((unused or "").strip("*."), names, 1, cutoff=0.0)
        raise UserError(
            f"train.trainable: {unused!r} matches none of {len(names):,} parameters, such as {close[0]}"
            if matched
            else "train.trainable: no pattern, so nothing would train; leave it out, or name some parameters"
        )
