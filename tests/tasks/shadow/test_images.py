"""Fitting pictures to the model: aspect, ranges, and that no pixel from outside the mask gets through."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shadowlab.data import decoding
from shadowlab.data import resizing as images
from shadowlab.data.decoding import BACKGROUND
from shadowlab.data.resizing import check_image_size, composite, fit_object, fit_square
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.own_picture import load_picture
from tests.tasks.shadow.sound import encode, mask_picture, object_picture

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

sides = st.integers(8, 48)
image_sizes = st.sampled_from([8, 16, 24, 32, 64])
seeds = st.integers(0, 2**32 - 1)


def random_object(seed: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """rgb (3, H, W) in [-1, 1]; mask (1, H, W), a random half plane of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(3, height, width, generator=generator) * 2 - 1
    mask = (torch.rand(1, height, width, generator=generator) < 0.7).float()
    mask[..., : width // 3] = 0
    return rgb, mask


@given(seeds, sides, sides, image_sizes)
def test_pixels_outside_the_mask_reach_nothing(seed: int, height: int, width: int, image_size: int) -> None:
    rgb, mask = random_object(seed, height, width)
    other = torch.where(mask > 0, rgb, torch.rand(rgb.shape, generator=torch.Generator().manual_seed(seed + 1)))
    image, small_mask = fit_object(rgb, mask, image_size, "x")
    other_image, other_mask = fit_object(other, mask, image_size, "x")
    assert torch.equal(image, other_image)
    assert torch.equal(small_mask, other_mask)


@given(seeds, sides, sides, image_sizes)
def test_fitted_object_has_its_shape_type_and_range(seed: int, height: int, width: int, image_size: int) -> None:
    image, mask = fit_object(*random_object(seed, height, width), image_size, "x")
    assert image.shape == (3, image_size, image_size)
    assert mask.shape == (1, image_size, image_size)
    assert image.dtype == mask.dtype == torch.float32
    assert image.abs().max() <= 1
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.any()
    assert (image[:, mask[0] == 0] == BACKGROUND).all()


@given(seeds, sides, sides, image_sizes)
def test_resizing_stays_within_the_range_of_the_file(seed: int, height: int, width: int, image_size: int) -> None:
    image = torch.rand(1, height, width, generator=torch.Generator().manual_seed(seed))
    square = fit_square(image, image_size, fill=0.0)
    assert square.shape == (1, image_size, image_size)
    assert square.min() >= 0
    assert square.max() <= image.max()


@given(sides, sides, image_sizes)
def test_the_longer_side_fills_the_square_and_the_rest_is_centred(height: int, width: int, image_size: int) -> None:
    square = fit_square(torch.ones(1, height, width), image_size, fill=0.0)[0]
    rows, columns = square.amax(dim=1), square.amax(dim=0)
    longer, shorter = (rows, columns) if height >= width else (columns, rows)
    assert longer.sum() == image_size
    expected = max(round(min(height, width) * image_size / max(height, width)), 1)
    assert shorter.sum() == expected
    start = int(shorter.argmax())
    assert shorter[start : start + expected].all()
    assert abs(start - (image_size - expected - start)) <= 1


def test_a_square_of_the_right_size_is_left_as_it_is() -> None:
    image = torch.rand(3, 32, 32)
    assert torch.equal(fit_square(image, 32, 0.0), image)


def test_halving_averages_instead_of_skipping() -> None:
    """Antialiasing: a one-pixel checkerboard becomes grey."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    assert (fit_square(board[None].float(), 16, 0.0) - 0.5).abs().max() < 0.02


def test_composite_drops_even_nan_outside_the_mask() -> None:
    rgb, mask = torch.full((3, 4, 4), torch.nan), torch.zeros(1, 4, 4)
    mask[0, 1, 1], rgb[:, 1, 1] = 1, 0.25
    image = composite(rgb, mask, background=-1.0)
    assert torch.equal(image[:, 1, 1], torch.full((3,), 0.25))
    assert (image.sum(), image.isnan().any()) == (3 * (0.25 - 15), False)


def test_a_mask_that_vanishes_is_an_error() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[0, 3, 3] = 1
    with pytest.raises(UserError, match="x: the mask is empty at 8 x 8"):
        fit_object(torch.zeros(3, 64, 64), mask, 8, "x")


@pytest.mark.parametrize("image_size", [0, -8, 4, 20, 513, True, 64.0, "64"])
def test_image_size_must_be_a_multiple_of_8(image_size: object) -> None:
    with pytest.raises(UserError, match="multiple of 8"):
        check_image_size(image_size)  # type: ignore[arg-type]


# --- a user's own picture ---


@pytest.fixture
def picture_files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "vase.png").write_bytes(encode(object_picture(1, side=48)))
    (tmp_path / "mask.png").write_bytes(encode(mask_picture(side=48)))
    return tmp_path / "vase.png", tmp_path / "mask.png"


def test_load_picture(picture_files: tuple[Path, Path]) -> None:
    picture = load_picture(*picture_files, theta=30.0, phi=90.0, size=2.0, image_size=32)
    assert picture.id == "vase"
    assert picture.object_image.shape == (3, 32, 32)
    assert picture.mask.shape == (1, 32, 32)
    assert picture.light.tolist() == [30.0, 90.0, 2.0]
    assert picture.light.dtype == torch.float32


def test_shadow_next_to_the_object_does_not_reach_the_input(picture_files: tuple[Path, Path]) -> None:
    object_path, mask_path = picture_files
    plain = load_picture(object_path, mask_path, 30, 90, 2, 32)
    levels = np.asarray(Image.open(object_path)).copy()
    levels[np.asarray(Image.open(mask_path)) == 0] //= 4  # all that is not object lies in shadow
    object_path.write_bytes(encode(Image.fromarray(levels)))
    assert torch.equal(load_picture(object_path, mask_path, 30, 90, 2, 32).object_image, plain.object_image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": 45.5}, "theta = 45.5"),
        ({"phi": -1.0}, "phi = -1"),
        ({"size": float("nan")}, "size = nan"),
        ({"image_size": 20}, "multiple of 8"),
        ({"mask_path": "nowhere.png"}, "nowhere.png: no such file"),
        ({"object_path": "."}, r"\.: cannot be read \(a folder, not a file\)"),
    ],
)
def test_load_picture_refuses(picture_files: tuple[Path, Path], changes: dict[str, object], message: str) -> None:
    object_path, mask_path = picture_files
    sound = {"object_path": object_path, "mask_path": mask_path, "theta": 1, "phi": 2, "size": 3, "image_size": 32}
    with pytest.raises(UserError, match=message):
        load_picture(**{**sound, **changes})  # type: ignore[arg-type]


def test_load_picture_refuses_a_mask_of_another_size(picture_files: tuple[Path, Path]) -> None:
    object_path, mask_path = picture_files
    mask_path.write_bytes(encode(mask_picture(side=24)))
    with pytest.raises(UserError, match=r"vase.png: 48 x 48 pixels, but its mask .*mask.png has 24 x 24"):
        load_picture(object_path, mask_path, 1, 2, 3, 32)


@given(seeds, st.integers(8, 40), st.integers(8, 40), image_sizes)
def test_a_picture_in_strips_gives_the_same_numbers(seed: int, height: int, width: int, image_size: int) -> None:
    """A large picture is resized strip by strip: it never exists as a whole in float32."""
    rgb = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    mask = torch.ones(1, height, width)
    mask[:, height // 2 :, width // 2 :] = 0
    whole = fit_object(rgb, mask, image_size, "x")
    for rows in (1, 3, height):
        parts = images.fit_object_strips(rgb.split(rows, dim=1), mask, image_size, "x")
        assert torch.equal(parts[0], whole[0])
        assert torch.equal(parts[1], whole[1])


@given(seeds, st.integers(8, 200), image_sizes)
def test_columns_then_rows_are_torchs_own_resize(seed: int, side: int, image_size: int) -> None:
    image = torch.rand(1, side, side, generator=torch.Generator().manual_seed(seed))
    at_once = F.interpolate(image[None], (image_size, image_size), mode="bilinear", antialias=True)[0]
    assert torch.equal(fit_square(image, image_size, 0.0), at_once.clamp(*image.aminmax()))


def test_a_large_picture_is_read_like_a_small_one(
    picture_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_picture(*picture_files, theta=1, phi=2, size=3, image_size=32)
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 100)  # strips of two rows
    strips = load_picture(*picture_files, theta=1, phi=2, size=3, image_size=32)
    assert torch.equal(strips.object_image, whole.object_image)
    assert torch.equal(strips.mask, whole.mask)


REAL = [(path.parent / "img.jpg", path) for path in sorted(SHARED.glob("photos/*/mask*.png"))]
REAL += [(SHARED / "matte/lemur.png", SHARED / "matte/lemur_alpha.png")] if (SHARED / "matte").is_dir() else []


@pytest.mark.skipif(not REAL, reason="needs the photographs in ../shared/data")
def test_real_photographs_load() -> None:
    for object_path, mask_path in REAL:
        picture = load_picture(object_path, mask_path, 30, 90, 2, image_size=64)
        share = picture.mask.mean().item()
        assert 0.02 < share < 0.4, mask_path
        outside = picture.object_image[:, picture.mask[0] == 0]
        assert (outside == BACKGROUND).all(), mask_path
        assert picture.object_image.std() > 0.01, mask_path
