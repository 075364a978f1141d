"""The pictures of a row, decoded and judged together. Training and `data check` both come through here.

Legend: H W pixels of the files, S image size, N tokens, D width of cross-attention.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from shadowlab.data import MASK_THRESHOLD, Entry, Problem, Role, decode, fit_square, object_strips
from shadowlab.errors import UserError
from shadowlab.tasks.insertion.file_list import COLUMNS, MORE
from shadowlab.tasks.insertion.samples import InsertionSample
from shadowlab.tasks.prompt_texts import PROMPT_KEY

GREY = 0.5
"""What borders are filled with."""
_GREY_MODES = ("L", "1")


@dataclass(frozen=True, eq=False)
class Pictures:
    """As in the files, float32."""

    target: Tensor
    """(3, H, W) in [0, 1]."""
    object: Tensor
    """(3, H', W') in [0, 1]."""
    mask: Tensor
    """(1, H, W) in {0, 1}."""
    prompt: Tensor | None
    """(N, D)."""


def place_of(entry: Entry) -> str:
    """`row 7`."""
    return entry.id if entry.values is None else f"row {int(entry.values[0])}"


def read_sample(entry: Entry, image_size: int) -> tuple[InsertionSample | None, list[Problem]]:
    """The sample at the model's size, or None and all that is wrong with its pictures.

    Raises:
        UserError: nothing of the mask is left at this size.
    """
    pictures, problems = decode_entry(entry)
    return (None if pictures is None else make_sample(entry, pictures, image_size)), problems


def read_colours(data: bytes, where: str) -> Tensor:
    """(3, H, W) float32 in [0, 1], as `colours_of`."""
    return colours_of(decode(data, where))


def colours_of(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1] of a decoded picture; what is transparent counts as grey. A picture of 8 bits gives
    its levels over 255, so that the same levels can be written again."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return torch.from_numpy(np.asarray(image).astype(np.float32) / np.float32(255)).permute(2, 0, 1)
    return (torch.cat(list(object_strips(image)), dim=1) + 1) / 2


def read_mask(data: bytes, where: str) -> Tensor:
    """(1, H, W) float32 in {0, 1}: 1 from 128 of 255 on.

    Raises:
        UserError: the picture is not grey of 8 bits, or nothing of it is white.
    """
    image = decode(data, where)
    if image.mode not in _GREY_MODES:
        raise UserError(
            f"{where}: a mask of mode {image.mode}; save it as grey of 8 bits, white where the object goes "
            '(pillow: mask.convert("L").save(...))'
        )
    levels = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8)
    values = levels.view(1, image.height, image.width).float() / 255
    mask = (values >= MASK_THRESHOLD).float()
    if not mask.any():
        most = round(float(values.max()) * 255)
        zero_one = " (a 0/1 mask? multiply by 255)" if most == 1 else ""
        raise UserError(
            f"{where}: empty mask: its brightest value is {most} of 255 and 128 counts{zero_one}; paint white where "
            "the object goes, or take the row out"
        )
    return mask


def read_prompt(data: bytes, where: str) -> Tensor:
    """(N, D) float32 of a safetensors file."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{where}: not a safetensors file that can be read; write it again") from error
    found = tensors.get(PROMPT_KEY)
    if found is None:
        named = ", ".join(sorted(tensors)) or "none"
        raise UserError(f"{where}: holds no tensor `{PROMPT_KEY}`, but {named}; name it so")
    found = found[0] if found.ndim == 3 and len(found) == 1 else found
    if found.ndim != 2 or not found.is_floating_point() or not bool(found.isfinite().all()):
        raise UserError(f"{where}: {tuple(found.shape)} {found.dtype}; expected finite (tokens, width)")
    return found.float()


def decode_entry(entry: Entry) -> tuple[Pictures | None, list[Problem]]:
    """Read what the entry has, each file once, and list every fault. Pictures only where there is none."""
    readers = {"target": read_colours, "object": read_colours, "mask": read_mask, "prompt": read_prompt}
    columns = {role: column for column, role in {**COLUMNS, **MORE}.items()}
    encoded: dict[Role, bytes] = {}
    found: dict[Role, Tensor] = {}
    messages: list[str] = []
    row = place_of(entry)
    for role, source in entry.sources.items():
        try:
            encoded[role] = source.read()
            found[role] = readers[role](encoded[role], source.name)
        except UserError as error:
            messages.append(f"{row}, {columns[role]}: {error}")
    if {"target", "mask"} <= found.keys() and found["target"].shape[1:] != found["mask"].shape[1:]:
        sizes = [f"{entry.sources[r].name} {found[r].shape[-1]} x {found[r].shape[-2]}" for r in ("target", "mask")]
        messages.append(f"{row}: sizes differ: {', '.join(sizes)}; a mask has the size of its target")
    if encoded.get("target") is not None and encoded.get("target") == encoded.get("object"):
        messages.append(
            f"{row}: object_image is the target, bit for bit ({entry.sources['target'].name}): the answer would stand "
            "next to the question; give a picture of the object alone"
        )
    problems = [Problem(entry.id, message) for message in messages]
    if problems or not set(COLUMNS.values()) <= found.keys():
        return None, problems
    return Pictures(found["target"], found["object"], found["mask"], found.get("prompt")), []


def make_sample(entry: Entry, pictures: Pictures, image_size: int) -> InsertionSample:
    """The entry at the model's size: pictures keep their shape and get grey borders; the mask is 1 where half of a
    pixel's area was.

    Raises:
        UserError: nothing of the mask is left at this size.
    """
    mask = (fit_square(pictures.mask, image_size, 0.0) >= MASK_THRESHOLD).float()
    if not mask.any():
        raise UserError(
            f"{place_of(entry)}, mask: {entry.sources['mask'].name}: nothing of it is left at {image_size} x "
            f"{image_size}; raise data.image_size, or paint a larger mask"
        )
    return InsertionSample(
        id=entry.id,
        object_id=entry.object_id,
        target=fit_square(pictures.target, image_size, GREY),
        object=fit_square(pictures.object, image_size, GREY),
        mask=mask,
        prompt=pictures.prompt,
    )
