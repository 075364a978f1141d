"""Albedos without a model, that a model must beat: the beauty itself, grey-world, and a classical retinex.

Legend: B batch, H W pixels. All work in linear light and give back what they were given: pictures of one space.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadowlab.tasks.albedo.samples import AlbedoBatch
from shadowlab.tasks.colour import converted

BEAUTY = "beauty"
CHROMATIC_EDGE, BRIGHT_EDGE = 0.08, 0.45
"""Retinex: a step of log colour, or of log brightness, from one pixel to the next that is taken for another surface.
Chosen by hand, on training objects of the shipped set: si-RMSE 0.1046 of them, at 0.04 and 0.3 it is 0.1064, at 0.02
and 0.45 it is 0.1094."""
WHITE = 0.8
"""Retinex: linear reflectance that the brightest surface is taken for (its 98th percentile)."""
_DARKEST = 1 / 512  # half of the least step of an 8-bit picture: below, a logarithm is noise
_LEAST_MEAN = 1e-6


def beauty(batch: AlbedoBatch) -> Tensor:
    """(B, 3, H, W) in [0, 1]: as if there were no light."""
    return batch.beauty


def grey_world(batch: AlbedoBatch) -> Tensor:
    """(B, 3, H, W) in [0, 1]: each channel scaled so that the means of the valid pixels are equal (Buchsbaum, 1980).

    The light's colour goes, shadows and shading stay.
    """
    light = converted(batch.beauty.float(), batch.space, "linear")
    count = batch.valid.flatten(2).sum(dim=2).clamp_min(1.0)
    means = ((light * batch.valid).flatten(2).sum(dim=2) / count).clamp_min(_LEAST_MEAN)
    gains = means.mean(dim=1, keepdim=True) / means
    return converted((light * gains[..., None, None]).clamp(0, 1), "linear", batch.space)


def retinex(batch: AlbedoBatch) -> Tensor:
    """(B, 3, H, W) in [0, 1]: colour retinex (Land and McCann, 1971; the colour variant of Grosse et al., ICCV 2009).

    Steps of colour or strong steps of brightness belong to the surface, all others to the light; what is left of the
    gradients is integrated again. Its scale is a guess, as of every method that knows gradients alone.
    """
    light = converted(batch.beauty.double(), batch.space, "linear")
    found = [_retinex(one.permute(1, 2, 0).cpu().numpy()) for one in light]
    reflectance = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float()
    return converted(reflectance.to(batch.beauty.device), "linear", batch.space)


BASELINES: Mapping[str, Callable[[AlbedoBatch], Tensor]] = {
    BEAUTY: beauty,
    "grey-world": grey_world,
    "retinex": retinex,
}
"""Name for people -> batch to albedo."""


def _retinex(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, 3) linear -> linear reflectance in [0, 1]."""
    logs = np.log(np.maximum(light, _DARKEST))
    brightness = logs.mean(axis=2)
    colour = logs - brightness[..., None]
    steps = []
    for axis in (0, 1):
        step, tint = np.diff(brightness, axis=axis), np.diff(colour, axis=axis)
        is_surface = (np.linalg.norm(tint, axis=2) > CHROMATIC_EDGE) | (np.abs(step) > BRIGHT_EDGE)
        steps.append(np.where(is_surface, step, 0.0))
    kept = integrated(steps[0], steps[1])
    reflectance = np.exp(kept[..., None] + colour - _tint_of_the_light(colour))
    return np.clip(reflectance * (WHITE / max(float(np.quantile(reflectance, 0.98)), 1e-12)), 0, 1)


def _tint_of_the_light(colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colour (3,) in logarithms that all pixels share: the grey-world's answer."""
    return colour.reshape(-1, 3).mean(axis=0)


def integrated(down: NDArray[np.float64], across: NDArray[np.float64]) -> NDArray[np.float64]:
    """The picture (H, W) of mean 0 whose steps are nearest to these in least squares.

    down: (H - 1, W) steps from row to row; across: (H, W - 1). A Poisson equation with free borders, solved exactly by
    the cosine transform.
    """
    from scipy.fft import dctn, idctn

    height, width = down.shape[0] + 1, across.shape[1] + 1
    divergence = np.zeros((height, width))
    divergence[:-1] += down
    divergence[1:] -= down
    divergence[:, :-1] += across
    divergence[:, 1:] -= across
    rows, columns = (2 * np.cos(np.pi * np.arange(count) / count) - 2 for count in (height, width))
    eigenvalues = rows[:, None] + columns[None]
    eigenvalues[0, 0] = 1.0
    spectrum = dctn(divergence, type=2) / eigenvalues
    spectrum[0, 0] = 0.0
    return np.asarray(idctn(spectrum, type=2))
