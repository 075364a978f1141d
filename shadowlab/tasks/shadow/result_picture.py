"""What a request results in, as the bytes of a PNG or GIF: a shadow map, a composite, or a row of them.

Each file carries a text `shadowlab`, a JSON object of light, steps, seed and a digest of all that decided it: so the
same command tells its own results from other files. Legend: H W pixels of the object's picture.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from diagnostics.files import open_file, sha256_of
from shadowlab.drawing import HEADER_HEIGHT
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.compositing import Background, composite, map_levels, read_background
from shadowlab.tasks.shadow.generate import PreparedObject, ShadowGenerator
from shadowlab.tasks.shadow.light import Light
from shadowlab.tasks.shadow.request import ShadowRequest

Array = np.ndarray[Any, Any]
_KEY = "shadowlab"
_VERSION = 1  # of the drawing: another gives other pixels
_FRAME_MILLISECONDS = 120
_MOST_PIXELS = 2**28  # of a strip or an animation
_MOST_SIDE = 65_535  # of a GIF


def digest_of(request: ShadowRequest, model: str) -> str:
    """SHA-256 (hex) of all that decides a result: files by their content, not by their names.

    Args:
        model: digest of the model.

    Raises:
        OSError: a file cannot be read.
    """
    style, background = request.style, request.background
    is_file = background is not None and Path(background).exists()
    shown: list[Any] = []
    if background is not None:
        named = sha256_of(background) if is_file else background
        shown = [is_file, named, request.intensity, style.colour, style.fit]
    decides = [
        _VERSION,
        model,
        sha256_of(request.object),
        None if request.mask is None else sha256_of(request.mask),
        request.lights(),
        request.steps,
        request.seed,
        [style.samples, style.side_by_side, style.bits, request.is_animation],
        shown,
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def digest_in(file: Path) -> str | None:
    """The digest that a result carries; None of any other file.

    Raises:
        OSError: it is no file, or cannot be read.
    """
    with open_file(file) as opened:
        try:
            with Image.open(opened, formats=("PNG", "GIF")) as image:
                text = image.info.get(_KEY, image.info.get("comment", b""))
            content = json.loads(text)
            return str(content["digest"])
        except Exception:  # pillow's readers raise anything on damaged bytes; whatever it is, it is no result of ours
            return None


def check_size(request: ShadowRequest, height: int, width: int) -> None:
    """Raise UserError where a strip or an animation of such pictures would be beyond all use."""
    count = max(len(request.lights()), request.style.samples if request.style.side_by_side else 1)
    if count > 1 and count * height * width > _MOST_PIXELS:
        raise UserError(
            f"{request.out}: {count} pictures of {width} x {height} pixels are too large for one file; scale the "
            "object's picture down or ask for fewer"
        )
    if request.is_animation and max(height, width) > _MOST_SIDE:
        raise UserError(f"{request.out}: {width} x {height} pixels; a GIF has at most {_MOST_SIDE} each way")


def draw_result(request: ShadowRequest, prepared: PreparedObject, generator: ShadowGenerator, digest: str) -> bytes:
    """The bytes of the request's file.

    Args:
        prepared: the request's object.
        digest: that it is to carry.

    Raises:
        UserError: the background cannot be read, or has another size.
    """
    style, height_width = request.style, prepared.picture.size
    background = None
    if request.background is not None:
        background = read_background(request.background, *height_width, style.fit)
    labelled: list[tuple[str, Array]] = []
    for label, light in request.lights():
        maps = [
            generator.shadow(prepared, *light, request.steps, request.seed + number) for number in range(style.samples)
        ]
        if style.side_by_side:
            labelled += [(f"seed {request.seed + number}", one) for number, one in enumerate(maps)]
        else:
            labelled.append((label, _mean(maps)))
    note = _note(request, digest)
    if style.bits == 16:
        return _png(np.round(labelled[0][1].astype(np.float64) * 65535).astype(np.uint16), note)
    shown = [_shown(one, request, prepared, background) for _, one in labelled]
    if request.is_animation:
        return _gif(shown, note)
    if len(shown) == 1:
        return _png(shown[0], note)
    return _png(_strip(shown, [label for label, _ in labelled]), note)


def _mean(maps: Sequence[Array]) -> Array:
    """(H, W) float32; one map stays as it is."""
    if len(maps) == 1:
        return maps[0]
    mean: Array = np.stack(maps).mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def _shown(shadow: Array, request: ShadowRequest, prepared: PreparedObject, background: Background | None) -> Array:
    """The map (H, W), or the composite (H, W, 3 or 4), uint8."""
    if background is None:
        return map_levels(shadow)
    return composite(prepared.picture, shadow, background, request.intensity, request.style.colour)


def _note(request: ShadowRequest, digest: str) -> str:
    theta, phi, size = request.light
    said: dict[str, Any] = {"theta": theta, "phi": phi, "size": size, "steps": request.steps, "seed": request.seed}
    if request.style.sweep is not None:
        said[request.style.sweep] = "swept"
    return json.dumps({**said, "samples": request.style.samples, "digest": digest})


def _png(levels: Array, note: str) -> bytes:
    """(H, W) uint8 or uint16, or (H, W, 3 or 4) uint8."""
    text, file = PngInfo(), io.BytesIO()
    text.add_text(_KEY, note)
    Image.fromarray(levels).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def _gif(frames: Sequence[Array], note: str) -> bytes:
    """Frames (H, W) or (H, W, 3) uint8, shown forever."""
    pictures, file = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    pictures[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=_FRAME_MILLISECONDS,
        loop=0,
        comment=note.encode(),
    )
    return file.getvalue()


def _strip(shown: Sequence[Array], labels: Sequence[str]) -> Array:
    """The pictures next to one another, each below its label."""
    pictures = [Image.fromarray(one) for one in shown]
    mode = pictures[0].mode
    width, height = pictures[0].size
    canvas = Image.new(mode, (width * len(pictures), height + HEADER_HEIGHT), "white")
    font = ImageFont.load_default(12)
    for column, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        cell = Image.new(mode, (width, HEADER_HEIGHT), "white")  # a long label does not run into the next
        ImageDraw.Draw(cell).text((4, 2), label, fill="black", font=font)
        canvas.paste(cell, (column * width, 0))
        canvas.paste(picture, (column * width, HEADER_HEIGHT))
    return np.asarray(canvas)


def light_text(light: Light) -> str:
    """`theta 30, phi 90, size 4`."""
    return "theta {:g}, phi {:g}, size {:g}".format(*light)
