"""The three edits, and what each of them needs."""

from dataclasses import dataclass
from typing import Literal

from shadowlab.data import Role
from shadowlab.encoded_batch import LATENT_CHANNELS

EditName = Literal["white-balance", "object-removal", "paint-to-image"]
GAINS = ("gain_red", "gain_green", "gain_blue")
"""Columns of what a white balance undoes: factors of linear light."""


@dataclass(frozen=True)
class Edit:
    """What an edit is given, and in which words it is spoken of."""

    name: EditName
    title: str
    """For people."""
    roles: tuple[Role, ...]
    """Pictures of a sample, in the order of the columns of a list."""
    inputs: tuple[str, ...]
    """Of the model, in the order of its channels."""
    makes_input: bool = False
    """Whether the input is made of the target where a data set has none."""
    gains: bool = False
    """Whether a list may say which gains were applied."""
    keeps: str = ""
    """What of the input the result keeps, for people; empty: nothing."""

    @property
    def has_mask(self) -> bool:
        return "mask" in self.roles

    @property
    def in_channels(self) -> int:
        """[x_t, input] in latents, and the mask as one channel."""
        return 2 * LATENT_CHANNELS + self.has_mask


EDITS: dict[EditName, Edit] = {
    "white-balance": Edit(
        "white-balance",
        "a wrong white balance corrected",
        ("input", "target"),
        ("x_t", "input"),
        gains=True,
        keeps="the input but for three gains in linear light, fitted to what the model paints",
    ),
    "object-removal": Edit(
        "object-removal",
        "an object removed with its shadow",
        ("input", "target", "mask"),
        ("x_t", "input", "mask"),
        keeps="every pixel outside the mask, bit for bit",
    ),
    "paint-to-image": Edit(
        "paint-to-image", "a painting made a picture", ("input", "target"), ("x_t", "input"), makes_input=True
    ),
}
