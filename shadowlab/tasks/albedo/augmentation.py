"""Changes of training samples that leave the albedo true: beauty and albedo are mirrored, turned, or change channels,
together.

A picture that is turned is that of a camera that is rolled: nothing that the task says of a pair knows up from down.

Light goes through a scene in each channel alone, so that the picture whose red, green and blue change places is that of
the scene whose surfaces and lights change theirs: another pair, as true as the first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import AugmentConfig
from shadowlab.tasks.albedo.samples import AlbedoSample

MIRRORED = "mirrored"
ORDERS = tuple("".join(order) for order in permutations("rgb"))[1:]
"""Of red, green and blue, but for the first."""
TURNS = ("90", "180", "270")
"""Degrees, against the clock."""
_SUPPORTED = {"flip", "quarter_turn", "channel_order"}


@dataclass(frozen=True)
class AlbedoAugmentation:
    """An `Augmentation`; see there for what each part is for. A variant is up to three words: `mirrored 90 bgr`."""

    settings: AugmentConfig
    seed: int
    """Of the run."""

    def __post_init__(self) -> None:
        """Raises UserError where something else is asked for."""
        other = [name for name, value in self.settings.model_dump().items() if value and name not in _SUPPORTED]
        if other:
            raise UserError(
                f"data.augment.{other[0]}: the task albedo has data.augment.flip, quarter_turn and channel_order, "
                "which change beauty and albedo alike and are exact; set it to 0"
            )

    @property
    def variants(self) -> tuple[str, ...]:
        sides = ["", MIRRORED] if self.settings.flip else [""]
        turns = ["", *TURNS] if self.settings.quarter_turn else [""]
        orders = ["", *ORDERS] if self.settings.channel_order else [""]
        found = [_joined(words) for words in product(sides, turns, orders)]
        return tuple(variant for variant in found if variant)

    def sample(self, sample: AlbedoSample, position: int) -> AlbedoSample:
        return self.as_variant(sample, self.variant(position))

    def variant(self, position: int) -> str:
        settings = self.settings
        drawn = (
            self._one_of((MIRRORED,), settings.flip, position, "flip"),
            self._one_of(TURNS, settings.quarter_turn, position, "turn"),
            self._one_of(ORDERS, settings.channel_order, position, "channels"),
        )
        return _joined(drawn)

    def as_variant(self, sample: AlbedoSample, variant: str) -> AlbedoSample:
        beauty, albedo, valid = sample.beauty, sample.albedo, sample.valid
        for word in variant.split():
            if word == MIRRORED:
                beauty, albedo, valid = (one.flip(-1) for one in (beauty, albedo, valid))
            elif word in TURNS:
                beauty, albedo, valid = (one.rot90(int(word) // 90, (-2, -1)) for one in (beauty, albedo, valid))
            else:
                order = ["rgb".index(channel) for channel in word]
                beauty, albedo = beauty[order], albedo[order]
        return replace(sample, beauty=beauty, albedo=albedo, valid=valid)

    def numbers(self, numbers: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        return dict(numbers)

    def _one_of(self, words: Sequence[str], share: float, position: int, what: str) -> str:
        """One of them with the chance `share`, else empty."""
        if derive_seed(self.seed, f"augment-{what}", position) / 2**63 >= share:
            return ""
        return words[derive_seed(self.seed, f"augment-which-{what}", position) % len(words)]


def _joined(words: Iterable[str]) -> str:
    return " ".join(word for word in words if word)
