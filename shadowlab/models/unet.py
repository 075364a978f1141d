"""SDXL's UNet made into a shadow generator: 9 input channels, no cross-attention, a light embedding.

Legend: B batch, C channels, h w latent height and width (H/8), D width of the time embedding.

The three changes are made the same way to random and to loaded weights:
- cross-attention is removed (`attn2 = norm2 = None`), not replaced by a processor that returns its input,
  which would leave every block adding LayerNorm(h) to h;
- the text path (`add_embedding`) makes way for `class_embedding`, 768 -> D -> D, added to the time embedding;
- `conv_in` is widened; the optimizer must be built afterwards.
"""

import json
from pathlib import Path
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

import shadowlab
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.seeding import derive_seed

Widening = Literal["zero", "repeat"]
_CONFIGS = Path(shadowlab.__file__).parent / "assets" / "unet"


def load_unet(
    weights: str, architecture: str, *, in_channels: int, widening: Widening, embedding_dim: int, seed: int
) -> UNet2DConditionModel:
    """A trainable float32 UNet on the CPU, ready for `in_channels` inputs and an embedding of `embedding_dim`.

    Args:
        weights: `random`, a folder in diffusers' layout (itself or its `unet/`), or a hub id.
        architecture: `tiny` or `sdxl`; read for random weights only.
        seed: of the random weights and of the parts that loaded weights lack.

    Raises:
        UserError: the folder is not a UNet, a file is damaged or a tensor is absent.
        MissingDependencyError: the hub id cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "unet"))
        unet = _random(architecture) if weights == "random" else _pretrained(weights)
        _adapt(unet, in_channels, widening, embedding_dim)
    return unet.train()


def unwritten_unet(config: dict, *, in_channels: int, widening: Widening, embedding_dim: int) -> UNet2DConditionModel:
    """The UNet that `load_unet` gives for weights of this configuration, with whatever values its tensors come with.

    For fake tensors: building on the meta device first, as random weights are, is not for them.
    """
    unet = UNet2DConditionModel.from_config(config)
    remove_cross_attention(unet)
    _adapt(unet, in_channels, widening, embedding_dim)
    return unet.train()


def _adapt(unet: UNet2DConditionModel, in_channels: int, widening: Widening, embedding_dim: int) -> None:
    add_embedding_input(unet, embedding_dim)
    widen_conv_in(unet, in_channels, widening)


def architecture_config(architecture: str) -> dict:
    """The UNet configuration of an architecture as the hub has it, before the three changes."""
    config = json.loads((_CONFIGS / f"{architecture}.json").read_text())
    return {key: value for key, value in config.items() if not key.startswith("_")}


def architecture_of(weights: str, architecture: str) -> dict:
    """The UNet configuration that `weights` bring: a folder's own; for random weights and a hub id, `architecture`'s.

    Raises:
        UserError: the folder has no config.json that can be read.
    """
    folder = Path(weights).expanduser()
    if weights == "random" or not folder.is_dir():
        return architecture_config(architecture)
    file = next((one for one in (folder / "config.json", folder / "unet" / "config.json") if one.is_file()), None)
    if file is None:
        raise UserError(f"{weights}: no config.json here or in unet/; give a folder in diffusers' layout")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not readable JSON ({error}); copy it again") from error
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _random(architecture: str) -> UNet2DConditionModel:
    # On the meta device first: the 0.55 B parameters of cross-attention are never allocated.
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(architecture_config(architecture))
    remove_cross_attention(unet)
    unet.add_embedding = None
    unet.to_empty(device="cpu")
    for module in unet.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
            module.reset_parameters()
    return unet


def _pretrained(weights: str) -> UNet2DConditionModel:
    folder = Path(weights).expanduser()
    arguments: dict = {"use_safetensors": True, "output_loading_info": True, "torch_dtype": torch.float32}
    if folder.exists():
        if not (folder / "config.json").is_file():
            arguments["subfolder"] = "unet"
            if not (folder / "unet" / "config.json").is_file():
                raise UserError(f"{weights}: no config.json here or in unet/; give a folder in diffusers' layout")
    elif weights.startswith((".", "/", "~")) or weights.count("/") != 1:
        raise UserError(f"{weights}: no such folder, and not a hub id (owner/name); correct model.weights")
    else:
        arguments["subfolder"] = "unet"
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # absent cross-attention is expected; checked below
    try:
        unet, info = UNet2DConditionModel.from_pretrained(folder if folder.exists() else weights, **arguments)
    except Exception as error:  # the libraries below raise anything from OSError to SafetensorError
        reason = " ".join(str(error).split())[:200]
        if folder.exists():
            raise UserError(
                f"{weights}: not loadable as a UNet ({type(error).__name__}: {reason}); check the files or copy again"
            ) from error
        raise MissingDependencyError(
            f"{weights}: cannot be had from the hub ({type(error).__name__}); download it where there is network "
            "(`hf download ...`) and give the folder with --weights DIR, or use --weights random"
        ) from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    remove_cross_attention(unet)
    wanted = set(unet.state_dict())
    missing = sorted(wanted & set(info["missing_keys"]))
    if missing or info["mismatched_keys"] or info["unexpected_keys"]:
        bad = missing or info["mismatched_keys"] or info["unexpected_keys"]
        raise UserError(f"{weights}: weights do not fit config.json, first at {bad[0]}; take both from one source")
    for name, module in unet.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise UserError(
                f"{weights}: config.json has dropout {module.p:g} (at {name}), drawn from global randomness: no run "
                "could be repeated or resumed; set `dropout` to 0.0 there"
            )
    for name, tensor in unet.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{weights}: {name} holds non-finite values; the file was saved after a failure, use another"
            )
    return unet


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
    """Replace the text path by a projection of an `embedding_dim` vector, added to the time embedding."""
    unet.add_embedding = None
    unet.add_time_proj = None
    unet.register_to_config(addition_embed_type=None)
    if unet.config.class_embed_type == "projection":
        held = unet.class_embedding.linear_1.in_features
        if held != embedding_dim:
            raise UserError(f"the weights project an embedding of {held} values; this model needs {embedding_dim}")
        return
    time_embed_dim = unet.time_embedding.linear_2.out_features
    unet.class_embedding = TimestepEmbedding(embedding_dim, time_embed_dim)
    unet.register_to_config(class_embed_type="projection", projection_class_embeddings_input_dim=embedding_dim)


def widen_conv_in(unet: UNet2DConditionModel, in_channels: int, rule: Widening) -> None:
    """Give `conv_in` more input channels, in place.

    `zero`: the old channels are copied, the new ones start at zero, so the output is unchanged at first
    (paper, section 4). `repeat`: the weights are tiled over the new channels and divided by the number of
    copies, bias unchanged, so that equal inputs give the old output (Ke et al., Marigold, 2024).
    """
    old = unet.conv_in
    if old.in_channels == in_channels:
        return
    if old.in_channels > in_channels or (rule == "repeat" and in_channels % old.in_channels):
        raise UserError(f"conv_in of {old.in_channels} channels cannot be widened to {in_channels} by rule `{rule}`")
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, padding=old.padding, bias=old.bias is not None)
    with torch.no_grad():
        if rule == "zero":
            new.weight.zero_()
            new.weight[:, : old.in_channels] = old.weight
        else:
            copies = in_channels // old.in_channels
            new.weight.copy_(old.weight.repeat(1, copies, 1, 1) / copies)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    unet.conv_in = new
    new.widened_from = old.in_channels
    unet.register_to_config(in_channels=in_channels)


def was_widened(unet: UNet2DConditionModel) -> bool:
    """Whether `widen_conv_in` made this conv_in, so that no weights of its new channels were loaded."""
    return hasattr(unet.conv_in, "widened_from")


def predict_velocity(unet: nn.Module, x_t: Tensor, t: Tensor, concatenated: Tensor, embedding: Tensor) -> Tensor:
    """Velocity at x_t, float32 (B, 4, h, w).

    Args:
        x_t: (B, 4, h, w), on the line from noise (t = 0) to data (t = 1).
        t: (B,) float32 in [0, 1].
        concatenated: (B, C - 4, h, w) conditions joined to x_t along channels.
        embedding: (B, E) joined to the time embedding.

    SDXL's embedding was trained on timesteps 0 .. 999 with 999 = noise, so the UNet sees 1000 (1 - t).
    """
    dtype = next(unet.parameters()).dtype
    sample = torch.cat([x_t, concatenated], dim=1).to(dtype)
    timesteps = 1000.0 * (1.0 - t.float())
    return unet(sample, timesteps, None, class_labels=embedding.float()).sample.float()
