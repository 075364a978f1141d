"""The frozen image autoencoder: pictures to latents and back, always in float32.

Legend: B batch, H and W picture height and width, h = H / 8, w = W / 8. A latent has 4 channels. The classes are in
`models/autoencoders.py`.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import Tensor

import shadowlab
from diagnostics.files import read_json, require_file
from shadowlab.encoded_batch import DOWNSCALE, LATENT_CHANNELS
from shadowlab.errors import MissingDependencyError, StageFailedError, UserError
from shadowlab.models.autoencoders import (
    SDXL_CONFIG,
    TINY_CONFIG,
    autoencoder_of,
    check_config,
    class_of,
    encoder_config,
    latents_of,
)
from shadowlab.models.precision import true_float32
from shadowlab.seeding import derive_seed

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
EMBEDDED_FOLDER = Path(shadowlab.__file__).parent / "assets" / "vae"
EMBEDDED = {"embedded": EMBEDDED_FOLDER, "embedded-albedo": EMBEDDED_FOLDER.with_name("vae-albedo")}
"""Sources of VAEs that ship: of shadow maps and objects on grey, and of pictures of any colour."""

_MAX_PIXELS = 2 * 1024 * 1024  # a larger batch goes through in pieces: memory stays flat, results are the same
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w-][\w.-]*)?")


class ImageVae:
    """A frozen `AutoencoderKL` or `AutoencoderTiny` that stays in float32.

    Not an `nn.Module`, so a parent's `.half()`, `.parameters()` or `state_dict()` never reaches it. Parameters
    need no gradient; gradients still flow through `encode` and `decode` to inputs that ask for them.

    Args:
        autoencoder: 4 latent channels, 8 times smaller latents. It is switched to float32 and eval mode, and frozen.

    Raises:
        UserError: the autoencoder's configuration is not one that latents here can use.
    """

    def __init__(self, autoencoder: AutoencoderKL | AutoencoderTiny) -> None:
        model: Any = autoencoder  # diffusers' lazy imports hide its attributes from the type checker
        check_config(dict(model.config), "autoencoder")
        self.autoencoder = model.float().eval().requires_grad_(False)
        self.scaling_factor = float(model.config.scaling_factor)
        self.shift_factor = float(model.config.shift_factor or 0.0)

    @property
    def num_parameters(self) -> int:
        """Number of parameters, encoder and decoder together."""
        return sum(parameter.numel() for parameter in self.autoencoder.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.autoencoder.parameters()).device

    def encoder_digest(self) -> str:
        """SHA-256 (hex) of what decides a latent: the encoder's weights by content and dtype, and its configuration.

        VAEs that differ in their decoders alone have one digest.
        """
        config = encoder_config(self.autoencoder.config)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.")):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: str | torch.device) -> Self:
        """Move the weights to `device`; the dtype stays float32."""
        self.autoencoder.to(torch.device(device))
        return self

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) any float dtype in [-1, 1] -> (B, 4, h, w) float32: (latents - shift) * scaling_factor.

        Raises:
            UserError: wrong shape, H or W not a multiple of 8, or, on the CPU, values not finite or out of range.
            StageFailedError: somebody converted the weights from float32.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % DOWNSCALE or images.shape[3] % DOWNSCALE:
            raise UserError(f"images {tuple(images.shape)}: expected (B, 3, H, W), H and W multiples of {DOWNSCALE}")
        # On a GPU the question would stop the host; data are checked on the CPU, where they come from.
        if images.device.type == "cpu" and not bool((images.detach().abs() <= 1.0 + 1e-3).all()):  # NaN fails too
            raise UserError("images must be finite and in [-1, 1]; rescale them before encoding")

        unscaled = self._run(self.unscaled, images, images.shape[2] * images.shape[3])
        return (unscaled - self.shift_factor) * self.scaling_factor

    def unscaled(self, images: Tensor) -> Tensor:
        """What the model gives of (B, 3, H, W) float32 in [-1, 1], (B, 4, h, w); nothing is looked at."""
        return latents_of(self.autoencoder, images)

    def encode_grey(self, maps: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] -> (B, 4, h, w) float32: repeated to RGB and 2x - 1. Raises as `encode`."""
        if maps.ndim != 4 or maps.shape[1] != 1:
            raise UserError(f"grey maps {tuple(maps.shape)}: expected (B, 1, H, W)")
        return self.encode(maps.float().expand(-1, 3, -1, -1) * 2.0 - 1.0)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) any float dtype, as `encode` gives them -> (B, 3, H, W) float32, about [-1, 1], not clamped.

        Raises:
            UserError: wrong shape.
            StageFailedError: somebody converted the weights from float32.
        """
        if latents.ndim != 4 or latents.shape[1] != LATENT_CHANNELS:
            raise UserError(f"latents {tuple(latents.shape)}: expected (B, {LATENT_CHANNELS}, h, w)")

        def picture(piece: Tensor) -> Tensor:
            return self.autoencoder.decode(piece / self.scaling_factor + self.shift_factor).sample

        return self._run(picture, latents, latents.shape[2] * latents.shape[3] * DOWNSCALE**2)

    def decode_grey(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 1, H, W) float32 in [0, 1]: first channel, (x + 1) / 2, clamped. Raises as `decode`."""
        return ((self.decode(latents)[:, :1] + 1.0) / 2.0).clamp(0.0, 1.0)

    def _run(self, function: Any, batch: Tensor, pixels: int) -> Tensor:
        if self.autoencoder.dtype != torch.float32:
            raise StageFailedError(f"VAE weights are {self.autoencoder.dtype}, expected float32; do not convert it")
        pieces = batch.to(self.device, torch.float32).split(max(1, _MAX_PIXELS // pixels))
        with true_float32(self.device):
            return torch.cat([function(piece) for piece in pieces])


def mask_to_latent(mask: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1] -> (B, 1, H / 8, W / 8) float32, each value the area covered: thin parts survive.

    Raises:
        UserError: wrong shape, or H or W not a multiple of 8.
    """
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] % DOWNSCALE or mask.shape[3] % DOWNSCALE:
        raise UserError(f"mask {tuple(mask.shape)}: expected (B, 1, H, W), H and W multiples of {DOWNSCALE}")
    return F.avg_pool2d(mask.float(), DOWNSCALE)


def load_vae(source: str, *, seed: int = 0, downloads: bool = True) -> ImageVae:
    """The VAE named by `source`, on the CPU.

    Args:
        source: `embedded` or `embedded-albedo` (shipped), `random` (SDXL's exact architecture, random weights),
            `random-tiny` (TAESD's), a folder in diffusers' layout (or a pipeline folder with `vae/` inside), or a hub
            id such as `stabilityai/sdxl-vae` or `stabilityai/stable-diffusion-xl-base-1.0/vae`. Only safetensors are
            read.
        seed: for `random` and `random-tiny` only; the global random state is left alone.
        downloads: whether a hub id may be fetched; if not, it must lie in the hub's cache on this machine.

    Raises:
        UserError: the folder or a file in it is absent, damaged, or does not fit; the message names the file.
        MissingDependencyError: the hub id is found neither on the network nor in the cache.
    """
    if source in EMBEDDED:
        if not EMBEDDED[source].is_dir():
            raise MissingDependencyError(f"the VAE {source} is not in this installation; install shadowlab again")
        return _from_folder(EMBEDDED[source])
    if source == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "random-vae"))
            return ImageVae(AutoencoderKL(**SDXL_CONFIG))
    if source == "random-tiny":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "random-tiny-vae"))
            return ImageVae(AutoencoderTiny(**TINY_CONFIG))
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        inner = folder / "vae"
        return _from_folder(inner if inner.is_dir() and not (folder / WEIGHTS_NAME).exists() else folder)
    if source and folder.exists():
        raise UserError(f"{source}: a VAE is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}; give the folder")
    if not _HUB_ID.fullmatch(source):
        raise UserError(
            f"VAE {source!r}: no such folder; give {', '.join(EMBEDDED)}, random, a folder or a hub id; or random-tiny"
        )
    return _from_hub(source, downloads)


def unwritten_vae(source: str) -> ImageVae:
    """The VAE that `load_vae(source)` gives, with whatever values its tensors come with; a hub id is taken for TAESD
    where its name begins so, and else for SDXL's.

    Raises:
        UserError: a folder has no config.json that can be read.
    """
    folder = EMBEDDED.get(source) or Path(source).expanduser()
    if source == "random-tiny" or (not folder.is_dir() and is_called_tiny(source)):
        return ImageVae(AutoencoderTiny(**TINY_CONFIG))
    if source == "random" or not folder.is_dir():
        return ImageVae(AutoencoderKL(**SDXL_CONFIG))
    config_path = (folder if (folder / CONFIG_NAME).is_file() else folder / "vae") / CONFIG_NAME
    try:
        config = read_json(config_path)
    except (ValueError, OSError) as error:
        raise UserError(f"{config_path}: not readable JSON ({_brief(error)}); copy it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{config_path}: expected a JSON object; copy it again")
    check_config(config, str(config_path))
    try:
        return ImageVae(autoencoder_of(config))
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        raise UserError(f"{config_path}: describes no VAE ({_brief(error)}); copy it again") from error


def is_called_tiny(source: str) -> bool:
    """Whether a hub id, `owner/name`, names one of TAESD's family."""
    return source.partition("/")[2].lower().startswith("taesd")


def embedded_parameters(source: str) -> int | None:
    """Number of parameters of a VAE that ships, as its training reported it; None of any other source."""
    return int(read_json(EMBEDDED[source] / "report.json")["num_parameters"]) if source in EMBEDDED else None


def _from_hub(source: str, downloads: bool) -> ImageVae:
    owner, name, *inner = source.split("/")
    try:
        subfolder = inner[0] if inner else None
        where = {"subfolder": subfolder, "local_files_only": not downloads}
        autoencoder, info = _from_pretrained(None, f"{owner}/{name}", **where)
    except OSError as error:
        raise MissingDependencyError(
            f"VAE {source!r}: no local folder has this name and the hub did not give it (offline, or no such model); "
            f"download {CONFIG_NAME} and {WEIGHTS_NAME} into a folder and give that folder"
        ) from error
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"VAE {source!r}: weights do not load ({_brief(error)}); give another model") from error
    return _checked(autoencoder, info, source)


def _from_folder(folder: Path) -> ImageVae:
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    for path in (config_path, weights_path):
        if not path.is_file():
            raise UserError(f"{path}: no such file; a VAE folder needs {CONFIG_NAME} and {WEIGHTS_NAME} (never pickle)")
    try:
        config = read_json(config_path)
    except (ValueError, OSError) as error:
        raise UserError(f"{config_path}: not readable JSON ({_brief(error)}); copy it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{config_path}: expected a JSON object; copy it again")
    check_config(config, str(config_path))
    try:
        require_file(weights_path)
        with safe_open(weights_path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights_path}: truncated or no safetensors ({_brief(error)}); copy it again") from error
    try:
        autoencoder, info = _from_pretrained(config, str(folder), local_files_only=True)
    except (ValueError, TypeError, RuntimeError, OSError, LookupError, AttributeError) as error:
        raise UserError(
            f"{weights_path}: does not fit {CONFIG_NAME} next to it ({_brief(error)}); copy both from one model"
        ) from error
    return _checked(autoencoder, info, str(weights_path))


def _from_pretrained(config: dict[str, Any] | None, name: str, **where: Any) -> tuple[Any, dict[str, Any]]:
    """The model and its loading report. diffusers' own warnings are silenced: `_checked` raises on what they say."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # Off the low-memory path a missing tensor is reported instead of left on the meta device.
            kind = class_of(AutoencoderKL.load_config(name, **where) if config is None else config)
            return kind.from_pretrained(
                name,
                use_safetensors=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                **where,
            )
    finally:
        diffusers_logging.set_verbosity(verbosity)


def _checked(autoencoder: Any, info: dict[str, Any], where: str) -> ImageVae:
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            names = sorted(map(str, info[problem]))
            found = f"{len(names)} {problem.replace('_', ' ')}, first {names[0]}"
            raise UserError(f"{where}: {found}; copy weights and {CONFIG_NAME} from one model")
    for name, tensor in autoencoder.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: tensor {name} holds values that are not finite; copy the file again or retrain")
    return ImageVae(autoencoder)


def _brief(error: Exception) -> str:
    """The error's text on one line, at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 160 else text[:157] + "...").rstrip(":; ")
