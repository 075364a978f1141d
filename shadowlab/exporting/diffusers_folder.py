"""A folder that `DiffusionPipeline.from_pretrained` loads where shadowlab is not installed.

OUT/
    model_index.json, pipeline.py    the task's pipeline
    unet/                            shadow_unet.py, config.json, weights
    vae/, scheduler/                 classes of diffusers
    shadowlab.yaml                   the configuration: shadowlab opens the folder, too
    README.md                        the model card
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from safetensors.torch import save_file

from diagnostics.files import create, read_bytes, replace_text
from shadowlab.errors import StageFailedError
from shadowlab.exporting.model_card import pipeline_card
from shadowlab.inference import CONFIG_NAME, LoadedModel, load_generator
from shadowlab.models import WEIGHTS_NAME
from shadowlab.settings import dump_config
from shadowlab.tasks import Exported, Trial

_SCRIPT = Path(__file__).with_name("pipeline_trial.py")


def write_folder(model: LoadedModel, exported: Exported, folder: Path) -> None:
    """Write the folder's files into `folder`, which is there and empty. Raises OSError where the disk refuses."""
    code, config = exported.code, model.config
    for name in ("unet", "vae"):
        (folder / name).mkdir()
    if code.folder is not None:
        own = [(name, folder) for name in (code.pipeline[0], *code.neighbours)]
        for module, where in (*own, (code.unet[0], folder / "unet")):
            if module != "diffusers":
                _write(where / f"{module}.py", read_bytes(code.folder / f"{module}.py"))
    unet = {**json.loads(model.unet.to_json_string()), "_class_name": code.unet[1]}
    unet.pop("_name_or_path", None)
    _write_json(folder / "unet" / "config.json", unet)
    save_file(exported.unet_weights(model.unet.state_dict()), folder / "unet" / WEIGHTS_NAME, {"format": "pt"})
    autoencoder: Any = model.task.vae.autoencoder
    vae = json.loads(autoencoder.to_json_string())
    vae.pop("_name_or_path", None)
    _write_json(folder / "vae" / "config.json", vae)
    save_file(autoencoder.state_dict(), folder / "vae" / WEIGHTS_NAME, {"format": "pt"})
    index = {
        "_class_name": code.pipeline[1] if code.folder is None else list(code.pipeline),
        "_diffusers_version": diffusers.__version__,
        **exported.write_parts(folder, config.data.image_size),
        "unet": list(code.unet),
        "vae": ["diffusers", type(autoencoder).__name__],
    }
    _write_json(folder / "model_index.json", index)
    replace_text(folder / CONFIG_NAME, dump_config(config))
    replace_text(folder / "README.md", pipeline_card(model, exported))


def compare_folder(model: LoadedModel, exported: Exported, folder: Path) -> tuple[float, str]:
    """Load the folder in a process that has no shadowlab, draw the task's trials, and compare with its generator.

    Returns:
        The largest difference of a pixel; and what was compared, for people.

    Raises:
        StageFailedError: it does not load or run there.
    """
    trials = exported.trials()
    generator = load_generator(model)
    wanted = [generator.generate(**one.arguments, steps=one.steps, seed=one.seed) for one in trials]
    with tempfile.TemporaryDirectory(prefix="shadowlab-export-") as work:
        found = _run_elsewhere(folder, trials, Path(work))
    differences = [
        float(np.abs(one - other).max()) if one.shape == other.shape else np.inf
        for one, other in zip(found, wanted, strict=True)
    ]
    listed = " and ".join(f"{one.steps} step{'s' if one.steps > 1 else ''}" for one in trials)
    return float(np.max(differences)), f"pictures of {listed}, in a process without shadowlab"


def _run_elsewhere(folder: Path, trials: list[Trial], work: Path) -> list[np.ndarray]:
    """Pictures (H, W) or (H, W, C) float32 of the trials."""
    arrays = {
        f"{number} {name}": np.asarray(value)
        for number, trial in enumerate(trials)
        for name, value in (trial.arguments if trial.pipeline is None else trial.pipeline).items()
        if value is not None
    }
    numbers = {f"{number} seed": np.asarray(one.seed) for number, one in enumerate(trials)}
    numbers |= {f"{number} noises": np.asarray(one.num_noises) for number, one in enumerate(trials)}
    numbers |= {f"{number} num_inference_steps": np.asarray(one.steps) for number, one in enumerate(trials)}
    given: dict[str, Any] = arrays | numbers
    np.savez(work / "arguments.npz", **given)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(work / "modules"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-P", str(_SCRIPT), str(folder.resolve()), str(work)]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise StageFailedError(f"the folder does not work with diffusers alone: {last[:300]}; nothing was left behind")
    with np.load(work / "pictures.npz", allow_pickle=False) as pictures:
        found = [pictures[str(number)] for number in range(len(trials))]
    return [one[..., 0] if one.shape[-1] == 1 else one for one in found]


def _write_json(file: Path, content: dict[str, Any]) -> None:
    replace_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _write(file: Path, content: bytes) -> None:
    with create(file) as opened:
        opened.write(content)
