"""Changes of training samples that leave the albedo true: beauty and albedo are mirrored, or change channels, together.

Light goes through a scene in each channel alone, so that the picture whose red, green and blue change places is that of
the scene whose surfaces and lights change theirs: another pair, as true as the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations

from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import AugmentConfig
from shadowlab.tasks.albedo.samples import AlbedoSample

MIRRORED = "mirrored"
ORDERS = tuple("".join(order) for order in permutations("rgb"))[1:]
"""Of red, green and blue, but for the first."""
_SUPPORTED = {"flip", "channel_order"}


@dataclass(frozen=True)
class AlbedoAugmentation:
    """An `Augmentation`; see there for what each part is for. Variants are `mirrored`, orders of channels, or both."""

    settings: AugmentConfig
    seed: int
    """Of the run."""

    def __post_init__(self) -> None:
        """Raises UserError where something else is asked for."""
        other = [name for name, value in self.settings.model_dump().items() if value and name not in _SUPPORTED]
        if other:
            raise UserError(
                f"data.augment.{other[0]}: the task albedo has data.augment.flip and data.augment.channel_order, which "
                "change beauty and albedo alike and are exact; set it to 0"
            )

    @property
    def variants(self) -> tuple[str, ...]:
        mirrored = ["", MIRRORED] if self.settings.flip else [""]
        orders = ["", *ORDERS] if self.settings.channel_order else [""]
        found = [_joined(side, order) for side in mirrored for order in orders]
        return tuple(variant for variant in found if variant)

    def sample(self, sample: AlbedoSample, position: int) -> AlbedoSample:
        return self.as_variant(sample, self.variant(position))

    def variant(self, position: int) -> str:
        is_mirrored = self._uniform("augment-flip", position) < self.settings.flip
        is_reordered = self._uniform("augment-channels", position) < self.settings.channel_order
        order = ORDERS[derive_seed(self.seed, "augment-order", position) % len(ORDERS)] if is_reordered else ""
        return _joined(MIRRORED if is_mirrored else "", order)

    def as_variant(self, sample: AlbedoSample, variant: str) -> AlbedoSample:
        beauty, albedo, valid = sample.beauty, sample.albedo, sample.valid
        for word in variant.split():
            if word == MIRRORED:
                beauty, albedo, valid = beauty.flip(-1), albedo.flip(-1), valid.flip(-1)
            else:
                order = ["rgb".index(channel) for channel in word]
                beauty, albedo = beauty[order], albedo[order]
        return replace(sample, beauty=beauty, albedo=albedo, valid=valid)

    def numbers(self, numbers: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        return dict(numbers)

    def _uniform(self, what: str, position: int) -> float:
        """In [0, 1)."""
        return derive_seed(self.seed, what, position) / 2**63


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word)
