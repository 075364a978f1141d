"""Changes of training samples that leave every label true.

- Flip: the camera lies in the plane x = 0, so the picture that is mirrored left to right is the picture of the scene
  that is mirrored at this plane, in which the light stands at 180 - phi.
- Brightness, contrast, colour and blur of the object alone: its picture is taken under a light of its own, which has
  nothing to say of the shadow.
- Intensity: the map is multiplied by a number that the model is told. What is not told would be noise.

Label noise is here, too, for those who ask for it by this name.

Legend: H W pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shadowlab.data import composite
from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import AugmentConfig
from shadowlab.tasks.shadow.light import SIZE_RANGE, THETA_RANGE, mirrored_light
from shadowlab.tasks.shadow.samples import Sample

MIRRORED = "mirrored"


@dataclass(frozen=True)
class ShadowAugmentation:
    """An `Augmentation`; see there for what each part is for."""

    settings: AugmentConfig
    seed: int
    """Of the run."""

    def __post_init__(self) -> None:
        """Raises UserError where something is asked for that another task has."""
        if self.settings.quarter_turn:
            raise UserError(
                "data.augment.quarter_turn: no light throws such a shadow in a picture that is turned; use "
                "data.augment.flip, which is exact"
            )
        other = next((name for name in ("channel_order", "cast") if getattr(self.settings, name)), None)
        if other is not None:
            raise UserError(
                f"data.augment.{other}: the task shadow has data.augment.colour, which changes the object alone; set "
                "it to 0"
            )

    @property
    def variants(self) -> tuple[str, ...]:
        return (MIRRORED,) if self.settings.flip else ()

    def sample(self, sample: Sample, position: int) -> Sample:
        """With an intensity `light` is (4,): theta, phi, size, intensity."""
        sample = self.as_variant(sample, self.variant(position))
        light = self._noisy(sample.light, position)
        if self.settings.changes_objects:
            sample = replace(sample, object_image=self._object(sample.object_image, sample.mask, position))
        if self.settings.intensity:
            intensity = 1.0 - self.settings.intensity * self._uniform("intensity", position)
            light = torch.cat([light, light.new_tensor([intensity])])
            sample = replace(sample, shadow=sample.shadow * light[3])
        return replace(sample, light=light)

    def variant(self, position: int) -> str:
        return MIRRORED if self._uniform("flip", position) < self.settings.flip else ""

    def as_variant(self, sample: Sample, variant: str) -> Sample:
        return mirrored(sample) if variant == MIRRORED else sample

    def numbers(self, numbers: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        light = numbers["light"]
        return {"light": self._noisy(mirrored_light(light) if self.variant(position) == MIRRORED else light, position)}

    def _object(self, rgb: Tensor, mask: Tensor, position: int) -> Tensor:
        """(3, H, W) in [-1, 1] -> the same, with other values inside the mask (1, H, W) alone."""
        value = (rgb + 1) / 2
        if share := self.settings.colour:
            value = value * torch.tensor([self._factor("colour", share, position, c) for c in range(3)])[:, None, None]
        if share := self.settings.brightness:
            value = value * self._factor("brightness", share, position)
        if share := self.settings.contrast:
            mean = value[:, mask[0] > 0].double().numpy().mean()  # numpy adds in one order, whatever the threads
            value = (value - float(mean)) * self._factor("contrast", share, position) + float(mean)
        value = value.clamp(0, 1)
        if most := self.settings.blur:
            value = blurred(value, mask, most * self._uniform("blur", position)).clamp(0, 1)
        return composite(value * 2 - 1, mask)

    def _noisy(self, light: Tensor, position: int) -> Tensor:
        """(3,) -> (3,), off by the label noise; theta and size turn back at the ends of their ranges."""
        degrees, size = self.settings.label_noise_degrees, self.settings.label_noise_size
        if not degrees and not size:
            return light
        off = [self._factor("label-noise", most, position, i) - 1 for i, most in enumerate((degrees, degrees, size))]
        wrong = light + torch.tensor(off)
        theta, side = (_turned_back(wrong[i], *bounds) for i, bounds in ((0, THETA_RANGE), (2, SIZE_RANGE)))
        return torch.stack([theta, torch.remainder(wrong[1], 360.0), side])

    def _factor(self, purpose: str, share: float, *counters: int) -> float:
        """In [1 - share, 1 + share)."""
        return 1.0 + share * (2.0 * self._uniform(purpose, *counters) - 1.0)

    def _uniform(self, purpose: str, *counters: int) -> float:
        """In [0, 1), 53 bits: of each purpose its own, so that switching one thing on changes no other draw."""
        return (derive_seed(self.seed, f"augment-{purpose}", *counters) >> 10) / 2**53


def mirrored(sample: Sample) -> Sample:
    """Object, mask, shadow map and light of the mirrored scene."""
    return replace(
        sample,
        object_image=sample.object_image.flip(-1),
        mask=sample.mask.flip(-1),
        shadow=sample.shadow.flip(-1),
        light=mirrored_light(sample.light),
    )


def blurred(value: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Gaussian mean over the pixels inside the mask: what lies outside, NaN included, has no part in it.

    Args:
        value: (3, H, W). mask: (1, H, W) in {0, 1}.
        sigma: standard deviation in pixels; cut off at three of them.

    Returns:
        (3, H, W), 0 outside the mask.
    """
    inside = torch.cat([torch.where(mask > 0, value, 0.0), mask])
    for dim in (1, 2):
        inside = _averaged(inside, dim, sigma)
    return torch.where(mask > 0, inside[:3] / inside[3:].clamp(min=1e-12), 0.0)


def _averaged(picture: Tensor, dim: int, sigma: float) -> Tensor:
    """Along one dimension, beyond whose ends all is 0. Sums of products alone: the same on any number of threads."""
    radius, length = math.ceil(3 * sigma), picture.shape[dim]
    total = picture.clone()
    for offset in range(1, min(radius, length - 1) + 1):
        weight = math.exp(-0.5 * (offset / sigma) ** 2)
        kept = length - offset
        total.narrow(dim, offset, kept).add_(picture.narrow(dim, 0, kept), alpha=weight)
        total.narrow(dim, 0, kept).add_(picture.narrow(dim, offset, kept), alpha=weight)
    return total


def _turned_back(value: Tensor, low: float, high: float) -> Tensor:
    value = torch.where(value < low, 2 * low - value, value)
    return torch.where(value > high, 2 * high - value, value)
