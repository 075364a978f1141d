"""The UNet as a task wants it, from random weights, a folder in diffusers' layout, or the hub."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import nn

import shadowlab
from diagnostics.files import read_json
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.interruption import signals
from shadowlab.models.spec import ModelSpec
from shadowlab.models.surgery import adapt, remove_cross_attention
from shadowlab.seeding import derive_seed

_ASSETS = Path(shadowlab.__file__).parent / "assets"
_CONFIGS = _ASSETS / "unet"
EMBEDDED_UNETS = {"embedded-inpainting": _ASSETS / "unet-inpainting"}
"""Words that name weights which ship -> their folder."""


def weights_folder(weights: str) -> Path:
    """Where weights lie that are no hub id: of those that ship, their own folder."""
    return EMBEDDED_UNETS.get(weights, Path(weights)).expanduser()


def load_unet(
    weights: str, architecture: str, spec: ModelSpec, *, seed: int, downloads: bool = True
) -> UNet2DConditionModel:
    """A float32 UNet on the CPU in training mode, changed as `spec` says; nothing is frozen yet.

    Args:
        weights: `random`, `embedded-inpainting`, a folder in diffusers' layout (itself or its `unet/`), or a hub id.
        architecture: a name of `model.architecture`; read for random weights only.
        seed: of the random weights and of the parts that loaded weights lack.
        downloads: whether a hub id may be fetched; if not, it must lie in the hub's cache on this machine.

    Raises:
        UserError: the folder is not a UNet, a file is damaged or a tensor is absent.
        MissingDependencyError: the hub id cannot be obtained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "unet"))
        keeps = spec.keeps_cross_attention
        unet = _random(architecture, keeps) if weights == "random" else _pretrained(weights, keeps, downloads)
        signals.stop_if_asked()
        adapt(unet, spec)
    return unet.train()


def unwritten_unet(config: dict, spec: ModelSpec) -> UNet2DConditionModel:
    """The UNet that `load_unet` gives for weights of this configuration, with whatever values its tensors come with.

    For fake tensors: building on the meta device first, as random weights are, is not for them.
    """
    unet = UNet2DConditionModel.from_config(config)
    if not spec.keeps_cross_attention:
        remove_cross_attention(unet)
    adapt(unet, spec)
    return unet.train()


def architecture_config(architecture: str) -> dict:
    """The UNet configuration of an architecture as the hub has it, before any change."""
    config = read_json(_CONFIGS / f"{architecture}.json")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def architecture_of(weights: str, architecture: str) -> dict:
    """The UNet configuration that `weights` bring: a folder's own; for random weights and a hub id, `architecture`'s.

    Raises:
        UserError: the folder has no config.json that can be read.
    """
    folder = weights_folder(weights)
    if weights == "random" or not folder.is_dir():
        return architecture_config(architecture)
    file = next((one for one in (folder / "config.json", folder / "unet" / "config.json") if one.is_file()), None)
    if file is None:
        raise UserError(f"{weights}: no config.json here or in unet/; give a folder in diffusers' layout")
    try:
        config = read_json(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not readable JSON ({error}); copy it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected a JSON object; copy it again")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _random(architecture: str, keeps_cross_attention: bool) -> UNet2DConditionModel:
    # On the meta device first: the 0.55 B parameters of cross-attention are never allocated.
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(architecture_config(architecture))
    if not keeps_cross_attention:
        remove_cross_attention(unet)
    unet.add_embedding = None
    unet.to_empty(device="cpu")
    for module in unet.modules():
        signals.stop_if_asked()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
            module.reset_parameters()
    return unet


def _pretrained(weights: str, keeps_cross_attention: bool, downloads: bool) -> UNet2DConditionModel:
    folder = weights_folder(weights)
    arguments: dict = {"use_safetensors": True, "output_loading_info": True, "torch_dtype": torch.float32}
    if folder.exists():
        if not (folder / "config.json").is_file():
            arguments["subfolder"] = "unet"
            if not (folder / "unet" / "config.json").is_file():
                raise UserError(f"{weights}: no config.json here or in unet/; give a folder in diffusers' layout")
    elif weights.startswith((".", "/", "~")) or weights.count("/") != 1:
        raise UserError(f"{weights}: no such folder, and not a hub id (owner/name); correct model.weights")
    else:
        arguments |= {"subfolder": "unet", "local_files_only": not downloads}
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
    if not keeps_cross_attention:
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
