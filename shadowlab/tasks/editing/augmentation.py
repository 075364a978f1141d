"""Changes of training samples that leave the edit true: all pictures of a sample are mirrored together; and of a white
balance, whose input is its target under gains, there are as many inputs as there are gains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import AugmentConfig
from shadowlab.tasks.editing.edits import Edit
from shadowlab.tasks.editing.samples import EditingSample
from shadowlab.tasks.editing.white_balance import cast

MIRRORED = "mirrored"
_PICTURES = ("input", "target", "mask", "valid")


@dataclass(frozen=True)
class EditingAugmentation:
    """An `Augmentation`; see there for what each part is for."""

    settings: AugmentConfig
    seed: int
    """Of the run."""
    edit: Edit

    def __post_init__(self) -> None:
        """Raises UserError where something is asked for that the edit has not."""
        known = ("flip", "cast") if self.edit.gains else ("flip",)
        other = next((name for name, value in self.settings.model_dump().items() if value and name not in known), None)
        if other == "cast":
            raise UserError(
                f"data.augment.cast: makes inputs of a white balance, and this model is one of {self.edit.name}; set "
                "it to 0"
            )
        if other is not None:
            raise UserError(
                f"data.augment.{other}: the task editing mirrors all pictures of a sample alike (data.augment.flip); "
                "another colour of the input alone would be another edit, and in other channels the gains would be "
                "other ones; set it to 0"
            )

    @property
    def variants(self) -> tuple[str, ...]:
        return (MIRRORED,)

    def sample(self, sample: EditingSample, position: int) -> EditingSample:
        return self._under_other_gains(self.as_variant(sample, self.variant(position)), position)

    def variant(self, position: int) -> str:
        return MIRRORED if self._uniform("flip", position) < self.settings.flip else ""

    def as_variant(self, sample: EditingSample, variant: str) -> EditingSample:
        if variant != MIRRORED:
            return sample
        return replace(sample, **{name: getattr(sample, name).flip(-1) for name in _PICTURES})

    def numbers(self, numbers: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        return dict(numbers)

    def _under_other_gains(self, sample: EditingSample, position: int) -> EditingSample:
        if not self.settings.cast:
            return sample
        red, blue = (self.settings.cast * (2 * self._uniform(f"cast-{name}", position) - 1) for name in ("red", "blue"))
        gains = torch.tensor([2.0**red, 1.0, 2.0**blue])
        return replace(sample, input=cast(sample.target, gains), gains=gains)

    def _uniform(self, purpose: str, position: int) -> float:
        """In [0, 1)."""
        return derive_seed(self.seed, f"augment-{purpose}", position) / 2**63
