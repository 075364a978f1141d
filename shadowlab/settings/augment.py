"""`data.augment`: what may be done to training samples, and what may not because it would make the light untrue."""

from typing import Annotated

from pydantic import Field

from shadowlab.settings.keys import Section, key

Share = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=0, lt=1)]

_OF_THE_OBJECT = ("brightness", "contrast", "colour", "blur")
_KEPT = ("flip", "quarter_turn", "channel_order")

REFUSED = {
    "data.augment.rotation": (
        "a rotated picture shows ground that is not level, and no theta, phi and size throw such a shadow: turned by 5 "
        "degrees it overlaps the true one by 0.71 to 0.75 (soft IoU). Use data.augment.flip, which is exact"
    ),
    "data.augment.shift": (
        "the camera is fixed, so a shifted picture is none that it takes: moved by 8 % of the width its shadow "
        "overlaps the true one by 0.93 (soft IoU). Use data.augment.flip, which is exact"
    ),
    "data.augment.zoom": (
        "the camera is fixed, so an enlarged picture is none that it takes: at 1.15 its shadow overlaps the true one "
        "by 0.91 (soft IoU). Use data.augment.flip, which is exact"
    ),
    "data.augment.vertical_flip": (
        "upside down the object hangs from its ground, and no light throws such a shadow. Use data.augment.flip, which "
        "mirrors left and right and is exact"
    ),
}
"""Keys that people look for -> why there is none."""


class AugmentConfig(Section):
    """How training samples are changed, anew each time one comes. Validation, overfit and check-forward see every
    sample as it is. What is drawn is a function of the seed and of the sample's place in the stream."""

    flip: Share = key(0.0, decides="numbers", examples=[0.5])
    """Chance that a sample is mirrored left to right: object, mask, shadow map, and phi -> 180 - phi, which is exact
    where the camera looks along the y axis. 0.5 doubles the data."""
    brightness: Change = key(0.0, decides="numbers", examples=[0.2])
    """The object's values (0 to 1) are multiplied by a factor from [1 - x, 1 + x]. This and the next three change the
    object inside its mask alone: neither background nor shadow map."""
    contrast: Change = key(0.0, decides="numbers", examples=[0.2])
    """The object's distances from its mean grey are multiplied by a factor from [1 - x, 1 + x]."""
    colour: Change = key(0.0, decides="numbers", examples=[0.1])
    """Red, green and blue of the object are multiplied by a factor each, from [1 - x, 1 + x]."""
    blur: Annotated[float, Field(ge=0, le=16)] = key(0.0, decides="numbers", examples=[1.0])
    """The object is blurred by a Gaussian whose standard deviation comes from [0, x], in pixels of the model's picture.
    Only pixels inside the mask are averaged."""
    quarter_turn: Share = key(0.0, decides="numbers", examples=[0.75])
    """Task albedo: chance that a sample is turned by 90, 180 or 270 degrees, as by a camera that is rolled. 0.75 draws
    all four alike."""
    channel_order: Share = key(0.0, decides="numbers", examples=[0.8])
    """Task albedo: chance that red, green and blue change places, in beauty and albedo alike, which is exact: light
    goes through a scene in each channel alone. 5/6 draws all six orders alike."""
    cast: Annotated[float, Field(ge=0, le=2)] = key(0.0, decides="numbers", examples=[0.75])
    """Task editing, white-balance: the input is made of the target anew, under gains of linear light that are drawn
    from [-x, x] stops, red and blue apart, green at 0. The data that ship have at most 0.75."""
    intensity: Change = key(0.0, decides="model", hashed_if_changed=True, examples=[0.5])
    """The shadow map is multiplied by an intensity from [1 - x, 1], and the model is told it as a fourth condition, for
    which its light embedding is wider: another model. All but training is at 1; `generate --intensity` multiplies the
    map of any model, so this is for studying the condition."""
    label_noise_degrees: Annotated[float, Field(ge=0, le=20)] = key(0.0, decides="numbers", examples=[2.0])
    """Label noise, not augmentation: the model is told a theta and a phi that are off by up to x degrees. It puts a
    ceiling on what can be learned: 2 degrees and 0.5 of size leave a soft IoU of 0.92."""
    label_noise_size: Annotated[float, Field(ge=0, le=3)] = key(0.0, decides="numbers", examples=[0.5])
    """Label noise, not augmentation: the model is told a size that is off by up to x scene units."""

    @property
    def needs_pictures(self) -> str:
        """`brightness and blur`: what has no end of variants, so that no latents of them can be kept; empty without."""
        named = [name for name in (*_OF_THE_OBJECT, "cast", "intensity") if getattr(self, name)]
        return " and ".join([", ".join(named[:-1]), *named[-1:]]) if len(named) > 1 else "".join(named)

    @property
    def kept_variants(self) -> dict[str, float]:
        """Key -> share of what has few variants, so that latents of all can be kept; without those that are 0."""
        return {name: getattr(self, name) for name in _KEPT if getattr(self, name)}

    @property
    def changes_objects(self) -> bool:
        return any(getattr(self, name) for name in _OF_THE_OBJECT)

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return bool(self.text)

    @property
    def text(self) -> str:
        """`flip 0.5, blur 1`: what is changed, for people; empty where nothing is."""
        return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.model_dump().items() if value)


def uncached(changed: str) -> str:
    """Why latents of such pictures cannot be kept, and what to set. changed: `AugmentConfig.needs_pictures`."""
    return (
        f"data.augment changes {changed} anew each time a sample comes, which latents that are kept cannot follow; set "
        "it to 0"
    )
