"""A run with a checkpoint whose averaged weights differ from its own, and pictures to try it on."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shadowlab.inference import LoadedModel, ModelPlace
from shadowlab.runs import RunFolder
from shadowlab.settings import load_config
from shadowlab.tasks import open_task
from shadowlab.training import build_unet
from shadowlab.training.checkpoint import save_checkpoint
from tests import tiny


def make_run(folders: dict[str, Path], output: Path, name: str = "first", step: int = 2, *assignments: str) -> Path:
    """runs/NAME with one checkpoint of `step`, as `train` leaves it."""
    config = tiny.stage_config(folders, output, *assignments)
    run = RunFolder.create(config, name)
    trainee = tiny.trainee_of(folders["unet"])
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in trainee.unet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_checkpoint(run.checkpoints, trainee, step=step, position=0, identity={})
    return run.path


def made_model(preset: str, *words: str, side: int = 32) -> LoadedModel:
    """The preset's architecture on the CPU, with random weights, none of them 0. words: as after --set."""
    device = torch.device("cpu")
    config = load_config(preset=preset, assignments=[f"data.image_size={side}", "device=cpu", *words])
    task = open_task(config, device)
    unet = build_unet(config, task.spec, device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    place = ModelPlace(Path(), Path(), {"raw": Path()}, None, None, "made here")
    return LoadedModel(config, task, unet.requires_grad_(False), "raw", None, "made here", place)


def exported_folder(run: Path, target: Path) -> Path:
    """The layout of an exported folder, from a run's averaged weights."""
    checkpoint = next((run / "checkpoints").glob("step-*"))
    (target / "unet").mkdir(parents=True)
    for file in (checkpoint / "ema").iterdir():
        (target / "unet" / file.name).write_bytes(file.read_bytes())
    (target / "shadowlab.yaml").write_bytes((run / "config.yaml").read_bytes())
    return target


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture, (H, W, 3) uint8."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [np.sin(rows / (7 + k + seed)) + np.cos(columns / (5 + k)) for k in range(3)]
    return ((np.stack(channels, axis=-1) + 2) / 4 * 255).astype(np.uint8)


def disk(height: int, width: int, soft: float = 0.0) -> np.ndarray:
    """A matte (H, W) uint8: a disk in the middle whose rim is `soft` pixels wide; 0: a mask of 0 and 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    distance = np.hypot(rows - height / 2, columns - width / 2) - min(height, width) / 3
    matte = np.clip(0.5 - distance / soft, 0, 1) if soft else distance < 0
    return (matte * 255.0).round().astype(np.uint8)


def save(array: np.ndarray, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path
