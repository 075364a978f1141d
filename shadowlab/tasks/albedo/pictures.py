"""The pictures of an entry, decoded and judged together. Training and `data check` both come through here.

Legend: H W pixels of the files, S image size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowlab.data import Entry, Problem, Role, alpha_of, decode, fit_square, object_strips, read_shadow
from shadowlab.encoded_batch import DOWNSCALE
from shadowlab.errors import UserError
from shadowlab.tasks.albedo.samples import AlbedoSample
from shadowlab.tasks.colour import ColourSpace, converted

ROLES: tuple[Role, ...] = ("beauty", "albedo", "valid")
_TARGET: Role = "albedo"


@dataclass(frozen=True)
class Spaces:
    """Colour spaces of a data set's files, and the one in which its samples are wanted."""

    beauty: ColourSpace
    albedo: ColourSpace
    wanted: ColourSpace


@dataclass(frozen=True, eq=False)
class Pictures:
    """As in the files, float32."""

    beauty: Tensor
    """(3, H, W) in [0, 1]."""
    albedo: Tensor
    """(3, H, W) in [0, 1]."""
    valid: Tensor
    """(1, H, W) in {0, 1}; all ones where there is no mask."""


def read_sample(entry: Entry, image_size: int, *, spaces: Spaces) -> tuple[AlbedoSample | None, list[Problem]]:
    """The sample at the model's size, in the wanted colour space, or None and all that is wrong with its pictures.

    Raises:
        UserError: no latent pixel is left at this size whose albedo is known.
    """
    pictures, problems = decode_entry(entry)
    return (None if pictures is None else make_sample(entry, pictures, image_size, spaces)), problems


def decode_picture(role: Role, data: bytes, where: str) -> Tensor:
    """(3, H, W) in [0, 1], or of `valid` (1, H, W) in {0, 1}. Raises UserError "where: what; fix"."""
    if role == "valid":
        return _read_valid(data, where)
    image = decode(data, where)
    alpha = alpha_of(image)
    if alpha is not None and alpha.min() < 1:
        raise UserError(
            f"{where}: the {role} has transparent pixels; save it without alpha, and what is unknown as black in a "
            "mask in valid/"
        )
    return (torch.cat(list(object_strips(image)), dim=1) + 1) / 2


def _read_valid(data: bytes, where: str) -> Tensor:
    """(1, H, W) in {0, 1}, white counts."""
    try:
        mask = (read_shadow(data, where) >= 0.5).float()
    except UserError as error:  # it speaks of a shadow
        raise UserError(
            str(error).replace("the shadow", "the valid mask").replace("bright = shadow", "white = known")
        ) from error
    if not mask.any():
        raise UserError(f"{where}: the valid mask is empty; save what is known as white, or take the sample out")
    return mask


def decode_entry(entry: Entry) -> tuple[Pictures | None, list[Problem]]:
    """Read what the entry has, each file once, and list every fault. Pictures only where there is none."""
    encoded: dict[Role, bytes] = {}
    decoded: dict[Role, Tensor] = {}
    messages: list[str] = []
    for role, source in entry.sources.items():
        try:
            encoded[role] = source.read()
            decoded[role] = decode_picture(role, encoded[role], source.name)
        except UserError as error:
            messages.append(str(error))
    messages += _size_faults(entry, decoded)
    if encoded.get("beauty") is not None and encoded.get("beauty") == encoded.get(_TARGET):
        messages.append(
            f"{entry.sources[_TARGET].name}: the albedo is the beauty, bit for bit ({entry.sources['beauty'].name}): "
            "source and target are one picture; put the albedo there"
        )
    problems = [Problem(entry.id, message) for message in messages]
    if problems or not {"beauty", _TARGET} <= decoded.keys():
        return None, problems
    valid = decoded.get("valid")
    if valid is None:
        valid = torch.ones_like(decoded[_TARGET][:1])
    return Pictures(decoded["beauty"], decoded[_TARGET], valid), []


def _size_faults(entry: Entry, decoded: dict[Role, Tensor]) -> list[str]:
    sizes = {role: f"{image.shape[-1]} x {image.shape[-2]}" for role, image in decoded.items()}
    if len(set(sizes.values())) < 2:
        return []
    listed = ", ".join(f"{entry.sources[role].name} {size}" for role, size in sizes.items())
    return [f"sizes differ: {listed}; export all at one size"]


def make_sample(entry: Entry, pictures: Pictures, image_size: int, spaces: Spaces) -> AlbedoSample:
    """The entry at the model's size. A picture that is not square gets borders of black that are not valid.

    Raises:
        UserError: no latent pixel is left at this size whose albedo is known.
    """
    beauty = converted(pictures.beauty, spaces.beauty, spaces.wanted)
    albedo = converted(pictures.albedo, spaces.albedo, spaces.wanted)
    valid = (fit_square(pictures.valid, image_size, 0.0) > 1.0 - 1e-3).float()  # known in all of its area
    if not latent_mask(valid[None]).any():
        source = entry.sources.get("valid", entry.sources[_TARGET])
        raise UserError(
            f"{source.name}: at {image_size} x {image_size} no block of {DOWNSCALE} x {DOWNSCALE} pixels is valid as a "
            "whole; raise data.image_size, or take the sample out"
        )
    return AlbedoSample(
        id=entry.id,
        object_id=entry.object_id,
        beauty=fit_square(beauty, image_size, 0.0),
        albedo=fit_square(albedo, image_size, 0.0),
        valid=valid,
        space=spaces.wanted,
    )


def latent_mask(valid: Tensor) -> Tensor:
    """(B, 1, H, W) in {0, 1} -> (B, 1, h, w) in {0, 1}: 1 where all of a latent's pixels are valid, as Marigold's."""
    return 1.0 - F.max_pool2d(1.0 - valid.float(), DOWNSCALE)
