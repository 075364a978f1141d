"""A UNet from a folder that may come from anybody: JSON and safetensors alone, judged before anything is allocated."""

import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diagnostics import all_finite
from diagnostics.files import read_json, reason_of, require_file
from shadowlab.encoded_batch import LATENT_CHANNELS
from shadowlab.errors import UserError
from shadowlab.models import WEIGHTS_NAME, ModelSpec, noise_first, unwritten_unet
from shadowlab.plain_text import plain_text

_CONFIG_NAME = "config.json"
_MOST_NUMBER = 2**14  # of channels, layers, heads; SDXL's largest is 2816
_MOST_LAYERS = 64  # per block and of transformers in one; SDXL has 10
_MOST_ELEMENTS = 2**34  # 64 GiB of float32
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What diffusers raises of a configuration that describes no UNet.
_NO_UNET = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError)


def read_unet(folder: Path, spec: ModelSpec, *, inside: Path, is_exported: bool = False) -> UNet2DConditionModel:
    """A float32 UNet on the CPU, in eval mode, whose parameters need no gradient.

    Args:
        folder: config.json and diffusion_pytorch_model.safetensors; tensors are float32, float16 or bfloat16.
        spec: of the task whose model it is to be.
        inside: a folder that the files must lie in once all links are followed.
        is_exported: its inputs stand in the order of the pipeline that it was exported for.

    Raises:
        UserError: a file is absent, damaged or leads out of `inside`, or what it holds is not this task's model.
    """
    unet = _described(folder / _CONFIG_NAME, spec, inside)
    file = folder / WEIGHTS_NAME
    wanted = unet.state_dict()
    try:
        require_file(file, inside=inside)
        with safe_open(file, framework="pt") as opened:
            _require_fit(opened, wanted, file)
            tensors = {name: opened.get_tensor(name).float() for name in wanted}
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason_of(error)}); copy it again") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{file}: truncated or no safetensors ({_brief(error)}); copy it again") from error
    if not bool(all_finite(tensors.values())):
        bad = next(name for name, tensor in tensors.items() if not bool(all_finite([tensor])))
        raise UserError(f"{file}: {bad} holds values that are not finite; take another checkpoint")
    if is_exported and spec.exports_conditions_first:
        tensors = noise_first(tensors)
    unet.load_state_dict(tensors, strict=True, assign=True)
    return unet.eval().requires_grad_(False)


def _described(file: Path, spec: ModelSpec, inside: Path) -> UNet2DConditionModel:
    """The UNet of a config.json, on the meta device."""
    try:
        config = read_json(file, inside=inside)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason_of(error)}); copy it again") from error
    except ValueError as error:
        raise UserError(f"{file}: not readable JSON ({_brief(error)}); copy it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected a JSON object; copy it again")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    _require_sane(config, file)
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # keys that it does not know are compared through the tensors
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unet = unwritten_unet(config, spec)
    except (*_NO_UNET, ValueError) as error:
        raise UserError(f"{file}: describes no UNet ({_brief(error)}); copy it again") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    if (unet.config.in_channels, unet.config.out_channels) != (spec.in_channels, LATENT_CHANNELS):
        raise UserError(
            f"{file}: {unet.config.in_channels} channels in and {unet.config.out_channels} out; this task's model has "
            f"{spec.in_channels} and {LATENT_CHANNELS}"
        )
    size = sum(tensor.numel() for tensor in unet.state_dict().values())
    if size > _MOST_ELEMENTS:
        raise UserError(f"{file}: describes {size:,} parameters, more than any model here; copy it again")
    return unet


def _require_sane(config: dict[str, Any], file: Path) -> None:
    """Raise UserError where numbers are beyond any UNet's: building one would take forever."""
    for key, value in config.items():
        most = _MOST_LAYERS if "layers" in key else _MOST_NUMBER
        for number in _numbers(value):
            if not -1 <= number <= most:
                raise UserError(f"{file}: {key} is beyond any UNet's; copy the file again")
        if isinstance(value, list) and len(value) > _MOST_LAYERS:
            raise UserError(f"{file}: {key} has {len(value)} entries, which is no UNet's; copy the file again")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _require_fit(opened: Any, wanted: dict[str, Tensor], file: Path) -> None:
    """Raise UserError unless the file's header names these tensors, in their shapes, of a type that is known."""
    names = set(opened.keys())
    for name in sorted(names ^ set(wanted))[:1]:
        where = "config.json, not in the file" if name in wanted else "the file, not in config.json's model"
        raise UserError(f"{file}: tensor {_shown(name)} is in {where}; take both from one model")
    for name, tensor in wanted.items():
        piece = opened.get_slice(name)
        if piece.get_dtype() not in _DTYPES:
            raise UserError(f"{file}: {name} is {piece.get_dtype()}; weights are float32, float16 or bfloat16 here")
        shape = tuple(piece.get_shape())
        if shape != tuple(tensor.shape):
            raise UserError(
                f"{file}: {name} is {shape}, the model of config.json has {tuple(tensor.shape)}; take both from one "
                "model"
            )


def _shown(name: str) -> str:
    return plain_text(" ".join(name.split()))[:80]


def _brief(error: Exception) -> str:
    """The error's text on one line, at most 160 characters."""
    text = plain_text(" ".join(str(error).split())) or type(error).__name__
    return (text if len(text) <= 160 else text[:157] + "...").rstrip(":; ")
