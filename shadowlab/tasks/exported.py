"""What a task adds to a model that leaves the house: code for diffusers, and what its programs take and give.

Legend: B batch, H W pixels, h w latents (H/8).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from shadowlab.encoded_batch import Conditions

PIPELINES = Path(__file__).parent / "pipelines"
"""Where the pipelines lie that bring pictures of any size into a square."""


@dataclass(frozen=True)
class PipelineCode:
    """A task's pipeline and UNet class: files that import diffusers, torch, numpy and pillow alone, or classes of
    diffusers."""

    folder: Path | None
    """Where the files lie; None: diffusers has both classes, and no code goes along."""
    pipeline: tuple[str, str]
    """Module and class of the pipeline: `pipeline`, `ShadowPipeline`; `diffusers` and its own class."""
    unet: tuple[str, str]
    """Of the UNet."""
    title: str
    """Of the model card, after the model's name."""
    summary: str
    """What it does, in a sentence or two."""
    usage: str
    """Python lines that follow `pipe = DiffusionPipeline.from_pretrained(...)`."""
    limits: str
    """What it was made for and what it does not know, for the model card."""
    needs: str = "torch diffusers pillow numpy"
    """Packages, as pip takes them."""
    neighbours: tuple[str, ...] = ()
    """Further modules that the pipeline's imports from its folder."""
    tolerance: float = 1e-5
    """Largest difference of a pixel in [0, 1] between the pipeline's pictures and the generator's."""


@dataclass(frozen=True)
class ProgramInput:
    """A tensor that a program takes, next to the noise."""

    name: str
    channels: int | None
    """(B, channels, H, W); None: (B, width)."""
    width: int | None
    text: str
    """Meaning, range and unit, for people."""


@dataclass(frozen=True)
class Trial:
    """Arguments with which a pipeline and the task's generator must give the same picture."""

    arguments: Mapping[str, Any]
    """Arrays and numbers, by the names that both know; None where one is left out."""
    steps: int
    seed: int
    pipeline: Mapping[str, Any] | None = None
    """For the pipeline in place of `arguments`, where it calls them otherwise."""
    num_noises: int = 1
    """That it draws, from seeds that follow one another."""


class Exported(Protocol):
    """Of one task whose VAE is loaded. `conditions` and `picture` are traced: they look at no value."""

    code: PipelineCode
    inputs: tuple[ProgramInput, ...]
    output: str
    """Name of the picture: `shadow`."""
    output_text: str
    """Shape and range of the picture, for people."""
    canvas: tuple[int, int]
    """How many pictures its latents are high and wide; (1, 1) unless others stand next to it."""

    def write_parts(self, folder: Path, image_size: int) -> dict[str, Any]:
        """Write the folders of what a pipeline of diffusers has next to UNet and VAE, its scheduler among them.

        Returns:
            Further entries of model_index.json.

        Raises:
            UserError: such a pipeline cannot hold this model.
            MissingDependencyError: a package that writes them is not installed.
            OSError: the disk refuses.
        """

    def unet_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The UNet's tensors (...) as that pipeline expects them: its inputs may be in another order."""

    def conditions(self, *inputs: Tensor) -> Conditions:
        """What the model is given next to the noise. inputs: as `inputs` says, (B, ...)."""

    def picture(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, C, H, W) float32 in [0, 1]."""

    def example(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Inputs of `count` samples, (B, ...), that the model could be given; the same ones each time."""

    def trials(self) -> list[Trial]:
        """One with one step and one with several, on pictures that are not square."""


def drawn_picture(height: int, width: int, phase: float = 0.0) -> np.ndarray:
    """Coloured waves to try a model on, (H, W, 3) uint8; another phase is another picture."""
    y, x = np.mgrid[:height, :width]
    colours = [0.5 + 0.4 * np.sin(9 * x / width + c + phase) * np.cos(6 * y / height + phase) for c in (0.0, 1.0, 2.0)]
    return np.round(np.stack(colours, axis=2) * 255).astype(np.uint8)


def drawn_mask(height: int, width: int) -> np.ndarray:
    """A disc, (H, W) uint8."""
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x / width - 0.45, y / height - 0.55) < 0.3
    return (inside * 255).astype(np.uint8)


def unit_tensor(levels: np.ndarray) -> Tensor:
    """(H, W, C) uint8 -> (C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(levels.astype(np.float32) / 255).permute(2, 0, 1)
