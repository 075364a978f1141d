"""A trained model, opened to be used: judged, generated with, exported."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel

from diagnostics.files import reason_of, require_inside
from shadowlab.distributed import pick_device
from shadowlab.errors import UserError
from shadowlab.inference.place import ModelPlace, find_model
from shadowlab.inference.saved_unet import read_unet
from shadowlab.models import WEIGHTS_NAME, load_vae
from shadowlab.runs import with_own_start
from shadowlab.settings import Config, load_kept_config
from shadowlab.tasks import Task, open_task

Weights = Literal["ema", "raw"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that predicts, in float32, on one device."""

    config: Config
    """It was trained with."""
    task: Task[Any]
    """With its VAE on the device."""
    unet: UNet2DConditionModel
    """In eval mode; no parameter needs a gradient."""
    weights: Literal["ema", "raw", "exported"]
    """What was loaded: `raw` where a run keeps no EMA; `exported` where a folder has one set of weights."""
    step: int | None
    """Of the checkpoint; None where it is not known."""
    name: str
    """For people: `runs/first, step 200`."""
    place: ModelPlace

    @property
    def device(self) -> torch.device:
        return self.task.vae.device

    @property
    def text(self) -> str:
        """`runs/first, step 200, EMA weights`."""
        words = {"ema": "EMA weights", "raw": "raw weights", "exported": "weights as exported"}
        return f"{self.name}, {words[self.weights]}"

    def digest(self) -> str:
        """SHA-256 (hex) of what decides its pictures: weights by content, in float32, and the size it works at.

        A run, its checkpoint and what was exported of it in float32 have one digest.
        """
        found = hashlib.sha256(f"{self.config.task} {self.config.data.image_size} ".encode())
        found.update(_architecture(self.unet).encode())
        found.update(_architecture(self.task.vae.autoencoder).encode())
        for module in (self.unet, self.task.vae.autoencoder):
            for name, tensor in sorted(module.state_dict().items()):
                found.update(f"{name} {tuple(tensor.shape)} ".encode())
                found.update(tensor.float().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


def _architecture(model: Any) -> str:
    """A model's configuration, less what says where it came from."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    return json.dumps(config, sort_keys=True, default=str)


def open_model(
    place: str | Path | ModelPlace,
    *,
    device: str | torch.device | None = None,
    weights: Weights = "ema",
    output_dir: str | None = None,
) -> LoadedModel:
    """Load a model. Nothing is downloaded, and no code that lies next to it is run.

    Args:
        place: as `find_model` takes it, or what it found.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, or a device that was picked already; None: auto, cuda where there is
            one.
        weights: `raw`: those of the last step in place of their average. A run without EMA has raw ones alone, an
            exported folder those it was given.
        output_dir: where runs are looked for by their names; None: `runs`.

    Raises:
        UserError: there is no model, or a file of it is damaged or does not fit.
        MissingDependencyError: its VAE is a hub id and not on this machine, or there is no such device.
    """
    found = place if isinstance(place, ModelPlace) else find_model(place, output_dir)
    chosen = device if isinstance(device, torch.device) else pick_device(device or "auto")
    config = with_own_start(load_kept_config(found.config), found.config.parent)
    kind: Any = weights if weights in found.unets else next(iter(found.unets))
    task = open_task(config)
    unet = read_unet(found.unets[kind], task.spec, inside=found.folder, is_exported=kind == "exported")
    if found.vae is not None:
        _require_own(found.vae, found.folder)
    source = config.model.vae_source if found.vae is None else str(found.vae)
    task.vae = load_vae(source, seed=config.seed, downloads=False).to(chosen)
    return LoadedModel(config, task, unet.to(chosen), kind, found.step, found.name, found)


def task_of(place: str | Path, output_dir: str | None = None) -> str:
    """The task of the model at a place, of which nothing is loaded. Arguments and errors as `find_model`."""
    return load_kept_config(find_model(place, output_dir).config).task


def _require_own(vae: Path, folder: Path) -> None:
    try:
        for name in ("config.json", WEIGHTS_NAME):
            require_inside(vae / name, folder)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({reason_of(error)})") from None
