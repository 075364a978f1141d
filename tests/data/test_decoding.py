"""Bytes to tensors: every pixel format means what its role says, and damage is always an error of the file."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shadowlab.data.decoding import MASK_THRESHOLD, read_mask, read_object, read_shadow
from shadowlab.errors import UserError
from tests.tasks.shadow.malformed import bomb
from tests.tasks.shadow.sound import SIDE, encode, mask_picture, noise, object_picture, shadow_picture

MASK = torch.from_numpy(np.asarray(mask_picture()) > 0)[None].float()


def grey(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8))


def with_alpha(colour: Image.Image, alpha: Image.Image) -> bytes:
    colour = colour.copy()
    colour.putalpha(alpha)
    return encode(colour)


# --- object images ---


def test_object_image_is_scaled_to_plus_minus_one() -> None:
    image = object_picture(3)
    tensor = read_object(encode(image), "x")
    assert tensor.shape == (3, SIDE, SIDE)
    assert tensor.dtype == torch.float32
    expected = torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_object_image_of_any_mode_has_three_channels(mode: str) -> None:
    image = object_picture(3).convert(mode)
    expected = torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(read_object(encode(image), "x"), expected)


def test_transparent_parts_of_an_object_image_become_background() -> None:
    alpha = mask_picture()
    tensor = read_object(with_alpha(object_picture(3), alpha), "x")
    assert torch.equal(tensor * (1 - MASK), torch.zeros_like(tensor))
    assert torch.equal(tensor * MASK, read_object(encode(object_picture(3)), "x") * MASK)


def test_transparent_colour_of_a_palette_becomes_background() -> None:
    image = grey(np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 2).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    tensor = read_object(buffer.getvalue(), "x")
    assert torch.equal(tensor[:, :, 0::2], torch.zeros(3, SIDE, SIDE // 2))
    assert (tensor[1, :, 1::2] > 0.5).all()


def test_exif_orientation_turns_the_picture() -> None:
    image = grey(np.repeat(np.arange(16)[:, None] * 16, 24, axis=1))  # 24 wide, 16 high, dark above
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=100, exif=exif)
    tensor = read_object(buffer.getvalue(), "x")
    assert tensor.shape == (3, 24, 16)
    assert (tensor[:, :, 0] > tensor[:, :, -1]).all()  # what was above is now on the right


def test_16_bit_grey_object_image() -> None:
    levels = np.linspace(0, 65535, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
    tensor = read_object(encode(Image.fromarray(levels)), "x")
    torch.testing.assert_close(tensor[0].double(), torch.from_numpy(levels / 65535.0 * 2 - 1), atol=1e-6, rtol=0)


# --- masks ---


@pytest.mark.parametrize(
    "data",
    [
        encode(mask_picture()),
        encode(mask_picture().convert("1")),
        encode(mask_picture().convert("P")),
        encode(mask_picture().convert("RGB")),
        with_alpha(mask_picture(), Image.new("L", (SIDE, SIDE), 255)),
        with_alpha(mask_picture().convert("RGB"), Image.new("L", (SIDE, SIDE), 255)),
        with_alpha(Image.new("RGB", (SIDE, SIDE), "white"), mask_picture()),
        with_alpha(Image.new("RGB", (SIDE, SIDE), "black"), mask_picture()),
        with_alpha(mask_picture(), mask_picture()),
        encode(Image.fromarray(np.asarray(mask_picture()).astype(np.uint16) * 257)),
    ],
    ids=["L", "1", "P", "RGB", "LA", "RGBA", "alpha of white", "alpha of black", "both", "16 bit"],
)
def test_mask_is_found_in_the_channel_that_carries_it(data: bytes) -> None:
    mask = read_mask(data, "x")
    assert mask.dtype == torch.float32
    assert torch.equal(mask, MASK)


def test_soft_white_shape_on_transparent_black_is_read_from_alpha() -> None:
    alpha = grey(np.tile(np.linspace(0, 255, SIDE), (SIDE, 1)))
    white = alpha.point(lambda value: 255 if value else 0)
    mask = read_mask(with_alpha(white, alpha), "x")
    assert torch.equal(mask[0], torch.from_numpy(np.asarray(alpha) >= 128).float())


@given(st.integers(0, 2**32 - 1))
def test_mask_is_thresholded_at_one_half(seed: int) -> None:
    levels = noise(seed, SIDE, SIDE)
    mask = read_mask(encode(grey(levels)), "x")
    assert torch.equal(mask[0], torch.from_numpy(levels / 255 >= MASK_THRESHOLD).float())


# --- shadows ---


def test_shadow_keeps_all_grey_levels() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    shadow = read_shadow(encode(grey(levels)), "x")
    assert shadow.shape == (1, 16, 16)
    assert torch.equal(shadow[0], torch.from_numpy(levels.astype(np.float32) / np.float32(255)))


def test_shadow_keeps_16_bits() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    shadow = read_shadow(encode(Image.fromarray(levels)), "x")
    assert shadow.unique().numel() == 65536
    assert shadow.min() == 0
    assert shadow.max() == 1


def test_grey_shadow_in_rgb_is_the_same_shadow() -> None:
    image = shadow_picture(4)
    expected = read_shadow(encode(image), "x")
    assert torch.equal(read_shadow(encode(image.convert("RGB")), "x"), expected)
    assert torch.equal(read_shadow(with_alpha(image, Image.new("L", image.size, 255)), "x"), expected)


# --- damage ---


@pytest.mark.parametrize(("width", "height"), [(131072, 131072), (9460, 9460)])
def test_bomb_is_an_error_and_no_warning(width: int, height: int) -> None:
    with pytest.raises(UserError, match=r"object.png: too many pixels"):  # and warnings are errors
        read_object(bomb(width, height), "object.png")


def _seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    seeds = []
    for image, kind, options in (
        (object_picture(1), "JPEG", {"exif": exif}),
        (object_picture(1), "PNG", {"exif": exif}),
        (object_picture(1).convert("P"), "PNG", {"transparency": 3}),
        (shadow_picture(1), "PNG", {"transparency": 3}),
        (mask_picture().convert("1"), "PNG", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        seeds.append(buffer.getvalue())
    return seeds


@pytest.mark.parametrize("levels", [np.uint8, np.uint16])
def test_a_mask_of_zeros_and_ones_is_reported_as_such(levels: type) -> None:
    ones = Image.fromarray((np.asarray(mask_picture()) > 0).astype(levels))
    with pytest.raises(UserError, match="x: a 0/1 mask .*: multiply by 255"):
        read_mask(encode(ones), "x")


@pytest.mark.parametrize(("kind", "name"), [("WEBP", "a WebP"), ("GIF", "a GIF"), ("BMP", "a BMP"), ("TIFF", "a TIFF")])
def test_another_format_is_named_and_what_is_read(kind: str, name: str) -> None:
    with pytest.raises(UserError, match=f"x: {name} picture, not a PNG or JPEG picture; convert it to PNG"):
        read_object(encode(object_picture(1), kind), "x")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pillow's, on damaged EXIF that it can do without
@settings(max_examples=300)
@given(
    data=st.sampled_from(_seeds()),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
)
def test_damaged_bytes_are_a_picture_or_an_error_naming_the_file(
    data: bytes, changes: list[tuple[int, int]], keep: float
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    damaged = damaged[: round(keep * len(damaged))]
    for read in (read_object, read_mask, read_shadow):
        try:
            outcome = read(bytes(damaged), "objects/x.png")
        except UserError as error:
            outcome = str(error)
        assert outcome.startswith("objects/x.png: ") if isinstance(outcome, str) else outcome.isfinite().all()


@given(st.sampled_from(_seeds()), st.floats(0, 0.9))
def test_a_cut_file_is_never_a_picture(data: bytes, keep: float) -> None:
    with pytest.raises(UserError, match=r"objects/x.png: "):
        read_object(data[: int(keep * len(data))], "objects/x.png")
