"""What a run's result depends on besides its configuration."""

import platform
import sys
from importlib import metadata
from typing import Any

import torch

from shadowlab import __version__
from shadowlab.settings import Config

_PACKAGES = ("torch", "diffusers", "accelerate", "safetensors", "numpy", "pydantic", "torchmetrics", "tensorboard")


def environment(config: Config) -> dict[str, Any]:
    """Versions, hardware, the model's hash and the command, as environment.json has them."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "shadowlab": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "gpus": gpus,
        "cpu_threads": torch.get_num_threads(),
        "model_hash": config.model_hash(),
        "command": sys.argv[1:],
    }
