"""Changes of training samples that leave the edit true: all pictures of a sample are mirrored together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import AugmentConfig
from shadowlab.tasks.editing.samples import EditingSample

MIRRORED = "mirrored"
_PICTURES = ("input", "target", "mask", "valid")


@dataclass(frozen=True)
class EditingAugmentation:
    """An `Augmentation`; see there for what each part is for."""

    settings: AugmentConfig
    seed: int
    """Of the run."""

    def __post_init__(self) -> None:
        """Raises UserError where something else than a flip is asked for."""
        other = next((name for name, value in self.settings.model_dump().items() if value and name != "flip"), None)
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
        return self.as_variant(sample, self.variant(position))

    def variant(self, position: int) -> str:
        return MIRRORED if derive_seed(self.seed, "augment-flip", position) / 2**63 < self.settings.flip else ""

    def as_variant(self, sample: EditingSample, variant: str) -> EditingSample:
        if variant != MIRRORED:
            return sample
        return replace(sample, **{name: getattr(sample, name).flip(-1) for name in _PICTURES})

    def numbers(self, numbers: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        return dict(numbers)
