"""Changes of training samples: all pictures of a row are mirrored together, and an object may be dropped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import AugmentConfig
from shadowlab.tasks.insertion.samples import InsertionSample

MIRRORED = "mirrored"
_SUPPORTED = {"flip"}


@dataclass(frozen=True)
class InsertionAugmentation:
    """An `Augmentation`; see there for what each part is for."""

    settings: AugmentConfig
    condition_dropout: float
    """Chance that the object is dropped."""
    seed: int
    """Of the run."""

    def __post_init__(self) -> None:
        """Raises UserError where something else than a flip is asked for."""
        other = [name for name, value in self.settings.model_dump().items() if value and name not in _SUPPORTED]
        if other:
            raise UserError(
                f"data.augment.{other[0]}: the task insertion mirrors pictures (data.augment.flip) and changes nothing "
                "else of them; set it to 0"
            )

    @property
    def variants(self) -> tuple[str, ...]:
        return (MIRRORED,) if self.settings.flip else ()

    def sample(self, sample: InsertionSample, position: int) -> InsertionSample:
        found = self.as_variant(sample, self.variant(position))
        return replace(found, shown=False) if self._drops(position) else found

    def variant(self, position: int) -> str:
        draw = derive_seed(self.seed, "augment-flip", position) / 2**63
        return MIRRORED if draw < self.settings.flip else ""

    def as_variant(self, sample: InsertionSample, variant: str) -> InsertionSample:
        if variant != MIRRORED:
            return sample
        target, own, mask = (one.flip(-1) for one in (sample.target, sample.object, sample.mask))
        return replace(sample, target=target, object=own, mask=mask)

    def numbers(self, numbers: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        return {**numbers, "shown": torch.tensor(0.0)} if self._drops(position) else dict(numbers)

    def _drops(self, position: int) -> bool:
        return derive_seed(self.seed, "condition-dropout", position) / 2**63 < self.condition_dropout
