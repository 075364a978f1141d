"""The three pictures of an entry, decoded and judged together. Training and `data check` both come through here.

Legend: H W pixels of the files, S image size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shadowlab.data import Entry, Problem, Role, fit_object, fit_square, read_mask, read_object, read_shadow
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.samples import Sample

ROLES: tuple[Role, ...] = ("object", "mask", "shadow")
_READERS: dict[Role, Callable[[bytes, str], Tensor]] = {"object": read_object, "mask": read_mask, "shadow": read_shadow}
_INPUTS: tuple[Role, Role] = ("object", "mask")
_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
_EQUAL_TOLERANCE = 2 / 255  # rounding of a conversion to grey


@dataclass(frozen=True, eq=False)
class Pictures:
    """As in the files, float32: the background is still around the object."""

    object: Tensor
    """(3, H, W) in [-1, 1]."""
    mask: Tensor
    """(1, H, W) in {0, 1}."""
    shadow: Tensor
    """(1, H, W) in [0, 1]."""


def read_sample(entry: Entry, image_size: int) -> tuple[Sample | None, list[Problem]]:
    """The sample at the model's size, or None and all that is wrong with its pictures.

    Raises:
        UserError: nothing of the mask is left at this size.
    """
    pictures, problems = decode_entry(entry)
    return (None if pictures is None else make_sample(entry, pictures, image_size)), problems


def decode_picture(role: Role, data: bytes, where: str) -> Tensor:
    """As `Pictures` has it. Raises UserError "where: what; fix"."""
    return _READERS[role](data, where)


def decode_entry(
    entry: Entry, decode: Callable[[Role, bytes, str], Tensor] = decode_picture
) -> tuple[Pictures | None, list[Problem]]:
    """Read what the entry has, each file once, and list every fault. Pictures only where there is none."""
    encoded: dict[Role, bytes] = {}
    messages: list[str] = []
    for role, source in entry.sources.items():
        try:
            encoded[role] = source.read()
        except UserError as error:
            messages.append(str(error))
    # A copied file is reported as that, before its colours or values are found to be no shadow's.
    copied = [role for role in _INPUTS if role in encoded and encoded[role] == encoded.get("shadow")]
    messages += [_leak(entry, role) for role in copied]
    if copied:
        del encoded["shadow"]
    decoded: dict[Role, Tensor] = {}
    for role, data in encoded.items():
        try:
            decoded[role] = decode(role, data, entry.sources[role].name)
        except UserError as error:
            messages.append(str(error))
    messages += _size_faults(entry, decoded) or [_leak(entry, role) for role in _INPUTS if _same_picture(role, decoded)]
    problems = [Problem(entry.id, message) for message in messages]
    if problems or len(decoded) < len(ROLES):
        return None, problems
    return Pictures(**decoded), []


def _size_faults(entry: Entry, decoded: dict[Role, Tensor]) -> list[str]:
    sizes = {role: f"{image.shape[-1]} x {image.shape[-2]}" for role, image in decoded.items()}
    if len(set(sizes.values())) < 2:
        return []
    listed = ", ".join(f"{entry.sources[role].name} {size}" for role, size in sizes.items())
    return [f"sizes differ: {listed}; export all three at one size"]


def _leak(entry: Entry, role: Role) -> str:
    return (
        f"{entry.sources['shadow'].name}: the shadow is identical to the {role} ({entry.sources[role].name}): "
        "source and target are one picture; put the shadow map there"
    )


def _same_picture(role: Role, decoded: dict[Role, Tensor]) -> bool:
    """Whether the target is one of the inputs, re-encoded or turned to grey."""
    if role not in decoded or "shadow" not in decoded:
        return False
    image, shadow = decoded[role], decoded["shadow"]
    if shadow.min() == shadow.max():  # no shadow at all is a remark of its own
        return False
    grey = ((image + 1) / 2 * _LUMA).sum(dim=0, keepdim=True) if role == "object" else image
    return bool((grey - shadow).abs().max() <= _EQUAL_TOLERANCE)


def make_sample(entry: Entry, pictures: Pictures, image_size: int) -> Sample:
    """The entry at the model's size; its light must be known.

    Raises:
        UserError: nothing of the mask is left at this size.
    """
    assert entry.values is not None, "an index without problems has every light"
    object_image, mask = fit_object(pictures.object, pictures.mask, image_size, entry.sources["mask"].name)
    return Sample(
        id=entry.id,
        object_id=entry.object_id,
        object_image=object_image,
        mask=mask,
        shadow=fit_square(pictures.shadow, image_size, 0.0),
        light=torch.tensor(entry.values, dtype=torch.float32),
        track=entry.track,
    )
