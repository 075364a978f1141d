"""Encoded pictures to tensors, strictly: PNG or JPEG, whole, of sane size, and meaning what their role says.

Legend: H W pixels of the file after its EXIF orientation. Every reader raises UserError "where: what; fix".
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from shadowlab.errors import UserError

BACKGROUND = 0.0  # grey 0.5 of [0, 1], in the [-1, 1] terms of the object image
MASK_THRESHOLD = 0.5
MIN_SIDE = 8  # one latent pixel
MAX_PIXELS = 89_478_485  # pillow's own warning level: a quarter gigabyte of RGB
_STRIP_PIXELS = 1 << 20  # turned to float32 at a time: a large picture never exists in float32
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
# (offset, bytes, name): pictures that are not read. Lossy or many-paged ones make bad masks and shadow maps.
_OTHER_FORMATS = (
    (8, b"WEBP", "a WebP"),
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftypheic", "a HEIC"),
)
_NEITHER = "not a PNG or JPEG picture; export it again"
_COLOUR_TOLERANCE = 8 / 255  # what JPEG does to a grey picture

# What pillow's PNG, JPEG and EXIF readers raise on damaged bytes; fuzzed in tests/data/test_decoding.py.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    struct.error,
    SyntaxError,
    TypeError,
    ValueError,
    zlib.error,
)


def _open(data: bytes) -> Image.Image:
    """Parse the header. pillow's bomb warning is silenced here because `decode` compares the size itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))


def decode(data: bytes, where: str) -> Image.Image:
    """A completely loaded, upright picture of at least 8 x 8 pixels."""
    if not data:
        raise UserError(f"{where}: the file is empty (0 bytes); export it again")
    try:
        header = _open(data)
        width, height = header.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if header.format == "PNG" and getattr(header, "is_animated", False):
            raise UserError(f"{where}: an animated PNG; save the one picture that is meant")
        header.verify()  # checksums of every PNG chunk; `load` alone does not look at those of the pixels
        image = _open(data)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{where}: too many pixels (decompression bomb; at most {MAX_PIXELS:,}); scale the picture down"
        ) from error
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise UserError(f"{where}: truncated or damaged picture; export it again") from error
        other = next((name for at, mark, name in _OTHER_FORMATS if data[at:].startswith(mark)), None)
        what = f"{other} picture, not a PNG or JPEG picture; convert it to PNG" if other else _NEITHER
        raise UserError(f"{where}: {what}") from error
    except _DAMAGE as error:
        raise UserError(f"{where}: truncated or damaged picture ({error}); export it again") from error
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{where}: {image.width} x {image.height} pixels; each side must have at least {MIN_SIDE} pixels"
        )
    return image


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The picture from top to bottom, some rows at a time."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _channels(image: Image.Image) -> tuple[Tensor, Tensor | None]:
    """Colour (3 or 1, H, W) and alpha (1, H, W) or None, float32 in [0, 1]."""
    if image.mode.startswith("I"):  # 16-bit grey PNG, the only integer mode of the two formats
        levels = np.asarray(image).astype(np.int64)
        colour = torch.from_numpy((levels / 65535.0).astype(np.float32))[None]
        transparent = image.info.get("transparency")
        return colour, None if transparent is None else torch.from_numpy(levels != transparent)[None].float()
    has_alpha = image.has_transparency_data
    mode = ("L" if image.mode in ("1", "L", "LA") else "RGB") + ("A" if has_alpha else "")
    levels = np.atleast_3d(np.asarray(image.convert(mode)))
    channels = torch.from_numpy(levels.astype(np.float32) / np.float32(255)).permute(2, 0, 1)
    return (channels[:-1], channels[-1:]) if has_alpha else (channels, None)


def _grey(colour: Tensor, where: str, role: str) -> Tensor:
    """(3 or 1, H, W) -> (1, H, W); a coloured picture is refused."""
    spread = (colour.amax(dim=0) - colour.amin(dim=0)).max().item() if len(colour) > 1 else 0
    if spread > _COLOUR_TOLERANCE:
        raise UserError(
            f"{where}: the {role} is coloured (channels differ by {round(spread * 255)} of 255); save it as grey"
        )
    return colour[:1] if spread == 0 else colour.mean(dim=0, keepdim=True)


def object_strips(image: Image.Image) -> Iterator[Tensor]:
    """A decoded object image from top to bottom, (3, some rows, W) float32 in [-1, 1] each; transparent parts are
    blended over the background."""
    for strip in _strips(image):
        colour, alpha = _channels(strip)
        rgb = (colour * 2 - 1).expand(3, -1, -1)
        yield rgb if alpha is None else rgb * alpha + BACKGROUND * (1 - alpha)


def read_object(data: bytes, where: str) -> Tensor:
    """The object image, (3, H, W) float32 in [-1, 1]."""
    return torch.cat(list(object_strips(decode(data, where))), dim=1)


def read_mask(data: bytes, where: str) -> Tensor:
    """The mask, (1, H, W) float32 in {0, 1}: 1 where the file reaches 0.5.

    The grey value carries the mask where alpha is absent or opaque; alpha does where everything visible has one
    grey value. Where both vary they must agree after the threshold.

    An empty mask shows no object. A full one takes no background away, so that the object image would show its own
    shadow. Both are refused.
    """
    return _read_mask(decode(data, where), where, lambda coverage: coverage >= MASK_THRESHOLD).float()


def read_matte(data: bytes, where: str) -> Tensor:
    """The mask as it was before the threshold, (1, H, W) float32 in [0, 1]; judged and refused as in `read_mask`."""
    return matte_of(decode(data, where), where)


def matte_of(image: Image.Image, where: str) -> Tensor:
    """`read_matte`, (1, H, W) float32 in [0, 1], of a picture that is decoded and upright."""
    return _read_mask(image, where, lambda coverage: coverage)


def alpha_of(image: Image.Image) -> Tensor | None:
    """The alpha of a decoded picture, (1, H, W) float32 in [0, 1]; None where it has none."""
    alphas = [_channels(strip)[1] for strip in _strips(image)]
    return None if any(alpha is None for alpha in alphas) else torch.cat(alphas, dim=1)  # type: ignore[arg-type]


def colour_levels(image: Image.Image) -> Tensor:
    """The colours of a decoded picture, (3, H, W) uint8, also where it is transparent; 16 bits become 8."""
    levels = [(_channels(strip)[0] * 255).round().to(torch.uint8) for strip in _strips(image)]
    return torch.cat(levels, dim=1).expand(3, -1, -1)


def _read_mask(image: Image.Image, where: str, keep: Callable[[Tensor], Tensor]) -> Tensor:
    """What `keep` makes of the coverage (1, some rows, W) in [0, 1], strip by strip, of the channel that has it."""
    by_grey, by_alpha, brightest = [], [], []  # the mask that each shows, strip by strip; (grey, alpha) at their most
    shown, least_alpha = [], 1.0  # grey values of visible pixels: least and greatest of each strip
    for strip in _strips(image):
        colour, alpha = _channels(strip)
        if alpha is None:
            alpha = torch.ones_like(colour[:1])
        else:
            colour = torch.where(alpha > 0, colour, 0.0)  # the colour of an invisible pixel means nothing
        grey = _grey(colour, where, "mask")
        by_grey.append(keep(grey))
        by_alpha.append(keep(alpha))
        brightest.append((grey.max().item(), alpha.max().item()))
        least_alpha = min(least_alpha, alpha.min().item())
        visible = grey[alpha > 0]
        shown += [visible.min().item(), visible.max().item()] if visible.numel() else []
    kept_grey, kept_alpha = torch.cat(by_grey, dim=1), torch.cat(by_alpha, dim=1)
    grey_mask, alpha_mask = kept_grey >= MASK_THRESHOLD, kept_alpha >= MASK_THRESHOLD
    alpha_decides = least_alpha < 1 and len(set(shown)) <= 1
    if least_alpha < 1 and not alpha_decides and not torch.equal(grey_mask, alpha_mask):
        raise UserError(
            f"{where}: grey values and alpha show different masks; save it as grey without alpha, white = object"
        )
    mask = alpha_mask if alpha_decides else grey_mask
    if not mask.any():
        most = max(alpha if alpha_decides else grey for grey, alpha in brightest)
        if 0 < most < 1.5 / 255:
            raise UserError(f"{where}: a 0/1 mask (empty mask: 128 of 255 counts as object): multiply by 255")
        raise UserError(
            f"{where}: empty mask: its brightest value is {round(most * 255)} of 255 and 128 counts as "
            "object; save the object as white"
        )
    if mask.all():
        raise UserError(f"{where}: full mask: it marks every pixel as object; save the background as black")
    return kept_alpha if alpha_decides else kept_grey


def read_shadow(data: bytes, where: str) -> Tensor:
    """The shadow map, (1, H, W) float32 in [0, 1], bright = shadow.

    A one-channel PNG keeps its 16 bits; of a 16-bit RGB file pillow gives the upper 8.
    """
    colour, alpha = _channels(decode(data, where))
    if alpha is not None and alpha.min() < 1:
        raise UserError(f"{where}: the shadow has transparent pixels; save it as grey without alpha, bright = shadow")
    return _grey(colour, where, "shadow")
