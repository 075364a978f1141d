"""Changes of training samples that leave the albedo true: beauty, albedo and mask are mirrored together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import AugmentConfig
from shadowlab.tasks.albedo.samples import AlbedoSample

MIRRORED = "mirrored"
_SUPPORTED = {"flip"}


@dataclass(frozen=True)
class AlbedoAugmentation:
    """An `Augmentation`; see there for what each part is for."""

    settings: AugmentConfig
    seed: int
    """Of the run."""

    def __post_init__(self) -> None:
        """Raises UserError where something else than a flip is asked for."""
        other = [name for name, value in self.settings.model_dump().items() if value and name not in _SUPPORTED]
        if other:
            raise UserError(
                f"data.augment.{other[0]}: the task albedo mirrors pictures (data.augment.flip) and changes nothing "
                "else of them: another colour of the beauty would be another light, and of both another surface; set "
                "it to 0"
            )

    @property
    def variants(self) -> tuple[str, ...]:
        return (MIRRORED,)

    def sample(self, sample: AlbedoSample, position: int) -> AlbedoSample:
        return self.as_variant(sample, self.variant(position))

    def variant(self, position: int) -> str:
        draw = derive_seed(self.seed, "augment-flip", position) / 2**63
        return MIRRORED if draw < self.settings.flip else ""

    def as_variant(self, sample: AlbedoSample, variant: str) -> AlbedoSample:
        if variant != MIRRORED:
            return sample
        beauty, albedo, valid = (one.flip(-1) for one in (sample.beauty, sample.albedo, sample.valid))
        return replace(sample, beauty=beauty, albedo=albedo, valid=valid)

    def numbers(self, numbers: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        return dict(numbers)
