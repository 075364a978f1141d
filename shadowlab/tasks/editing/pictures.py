"""The pictures of an entry, decoded and judged together. Training and `data check` both come through here.

All of them are sRGB, whatever the file says. Legend: H W pixels of the files, S image size, B batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shadowlab.data import Entry, Problem, Role, alpha_of, decode, fit_square, object_strips, read_mask
from shadowlab.errors import UserError
from shadowlab.tasks.editing.edits import GAINS, Edit
from shadowlab.tasks.editing.painting import Painting, painted
from shadowlab.tasks.editing.samples import EditingSample
from shadowlab.tasks.editing.white_balance import cast

_COVERED = 1e-3
GAIN_TOLERANCE = 2.0
"""Levels of 255, on average, by which an input may differ from its target under the gains that are stated."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """As in the files, float32."""

    input: Tensor | None
    """(3, H, W) in [0, 1]; None where it is made of the target."""
    target: Tensor
    """(3, H, W) in [0, 1]."""
    mask: Tensor
    """(1, H, W) in {0, 1}; all ones where the edit has none."""


def read_sample(
    entry: Entry, image_size: int, *, edit: Edit, painting: Painting
) -> tuple[EditingSample | None, list[Problem]]:
    """The sample at the model's size, or None and all that is wrong with its pictures."""
    pictures, problems = decode_entry(entry, edit)
    return (None if pictures is None else make_sample(entry, pictures, image_size, painting)), problems


def decode_picture(role: Role, data: bytes, where: str) -> Tensor:
    """(3, H, W) in [0, 1], or of `mask` (1, H, W) in {0, 1}. Raises UserError "where: what; fix"."""
    if role == "mask":
        return read_mask(data, where)
    image = decode(data, where)
    alpha = alpha_of(image)
    if alpha is not None and alpha.min() < 1:
        raise UserError(f"{where}: the {role} has transparent pixels; save it without alpha")
    return (torch.cat(list(object_strips(image)), dim=1) + 1) / 2


def decode_entry(entry: Entry, edit: Edit) -> tuple[Pictures | None, list[Problem]]:
    """All pictures of an entry, or None and everything that is wrong with them."""
    decoded: dict[Role, Tensor] = {}
    problems = []
    for role, source in entry.sources.items():
        try:
            decoded[role] = decode_picture(role, source.read(), source.name)
        except UserError as error:
            problems.append(Problem(entry.id, str(error)))
    if not problems:
        problems = [Problem(entry.id, message) for message in (*_size_faults(entry, decoded), *_faults(entry, decoded))]
    if problems or "target" not in decoded:
        return None, problems
    mask = decoded["mask"] if edit.has_mask else torch.ones_like(decoded["target"][:1])
    return Pictures(decoded.get("input"), decoded["target"], mask), []


def _size_faults(entry: Entry, decoded: dict[Role, Tensor]) -> list[str]:
    sizes = {role: f"{image.shape[-1]} x {image.shape[-2]}" for role, image in decoded.items()}
    if len(set(sizes.values())) < 2:
        return []
    listed = ", ".join(f"{entry.sources[role].name} {size}" for role, size in sizes.items())
    return [f"sizes differ: {listed}; export all at one size"]


def _faults(entry: Entry, decoded: dict[Role, Tensor]) -> list[str]:
    """Of gains that are not those of the pictures."""
    if entry.values is None or "input" not in decoded or decoded["input"].shape != decoded["target"].shape:
        return []
    off = float((cast(decoded["target"], torch.tensor(entry.values)) - decoded["input"]).abs().mean()) * 255
    if off <= GAIN_TOLERANCE:
        return []
    said = ", ".join(f"{gain:g}" for gain in entry.values)
    return [
        f"{', '.join(GAINS)} are {said}, and the target under them is {off:.1f} levels from the input on average "
        f"(at most {GAIN_TOLERANCE:g}): they multiply linear light, not sRGB; correct them, or leave them out"
    ]


def make_sample(entry: Entry, pictures: Pictures, image_size: int, painting: Painting) -> EditingSample:
    """The entry at the model's size. A picture that is not square gets borders of black that are not valid; a pixel of
    the mask is one that the mask covers a part of."""
    target = fit_square(pictures.target, image_size, 0.0)
    valid = (fit_square(torch.ones_like(pictures.mask), image_size, 0.0) > 1 - _COVERED).float()
    given = painted(target[None], painting)[0] if pictures.input is None else pictures.input
    return EditingSample(
        id=entry.id,
        object_id=entry.object_id,
        input=given if pictures.input is None else fit_square(given, image_size, 0.0),
        target=target,
        mask=(fit_square(pictures.mask, image_size, 0.0) > _COVERED).float(),
        valid=valid,
        gains=torch.full((3,), float("nan")) if entry.values is None else torch.tensor(entry.values),
    )
