"""Object, shadow and background, put together as they lie."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.errors import UserError
from shadowlab.tasks.shadow.compositing import Background, composite, parse_colour, read_background
from shadowlab.tasks.shadow.object_picture import object_picture
from tests.inference.made import disk, picture, save

H, W = 24, 40
GROUND = Background(picture(H, W, seed=9), None)
FULL = np.ones((H, W), np.float32)


def test_no_intensity_leaves_background_and_object_to_the_bit() -> None:
    mask = disk(H, W)
    made = composite(object_picture(picture(H, W), mask), FULL, GROUND, 0.0)
    assert np.array_equal(made, np.where(mask[..., None] > 0, picture(H, W), GROUND.colour))


def test_the_shadow_lies_under_the_object_and_darkens_the_ground_alone() -> None:
    mask = disk(H, W)
    made = composite(object_picture(picture(H, W), mask), FULL, GROUND, 1.0)
    assert np.array_equal(made[mask > 0], picture(H, W)[mask > 0])
    assert not made[mask == 0].any()  # a full shadow is black
    red = composite(object_picture(picture(H, W), mask), FULL * 0.5, GROUND, 2.0, (200, 10, 20))
    assert (red[mask == 0] == (200, 10, 20)).all()  # 0.5 x 2 is a full one, too
    half = composite(object_picture(picture(H, W), mask), FULL, GROUND, 0.5)
    assert np.abs(half[mask == 0] - GROUND.colour[mask == 0] / 2).max() <= 0.5


def test_a_soft_matte_mixes_object_and_shadowed_ground() -> None:
    matte = disk(H, W, soft=6.0)
    assert len(np.unique(matte)) > 20
    made = composite(object_picture(picture(H, W), matte), FULL, GROUND, 0.5)
    share = matte[..., None] / 255
    wanted = picture(H, W) * share + GROUND.colour * 0.5 * (1 - share)
    assert np.abs(made - wanted).max() <= 0.5 + 1e-4


def test_on_nothing_the_shadow_is_alpha(tmp_path: Path) -> None:
    matte = disk(H, W, soft=6.0)
    cut = object_picture(picture(H, W), matte)
    made = composite(cut, FULL * 0.25, read_background("transparent", H, W), 1.0)
    assert made.shape == (H, W, 4)
    ground = Image.fromarray(np.dstack([GROUND.colour, np.full((H, W), 255, np.uint8)]))
    laid = np.asarray(Image.alpha_composite(ground, Image.fromarray(made)))[..., :3].astype(int)
    assert np.abs(laid - composite(cut, FULL * 0.25, GROUND, 1.0)).max() <= 2  # 8-bit alpha
    bare = composite(cut, FULL, read_background("transparent", H, W), 0.0)
    assert np.array_equal(bare[..., 3], matte)
    assert np.array_equal(bare[matte > 0, :3], picture(H, W)[matte > 0])


def test_what_is_transparent_in_the_object_shows_the_ground() -> None:
    alpha = disk(H, W)
    alpha[:, : W // 2] = 0
    cut = object_picture(np.dstack([picture(H, W), alpha]), disk(H, W))
    made = composite(cut, FULL, GROUND, 0.0)
    assert np.array_equal(made, np.where(alpha[..., None] > 0, picture(H, W), GROUND.colour))


def test_a_background_of_another_size_is_refused_or_covers(tmp_path: Path) -> None:
    file = str(save(picture(48, 60), tmp_path / "wide.png"))
    with pytest.raises(UserError, match=r"wide\.png: 60 x 48 pixels, the object's picture has 40 x 24; .* --fit cover"):
        read_background(file, H, W)
    covering = read_background(file, H, W, "cover")
    assert covering.colour.shape == (H, W, 3)
    wanted = np.asarray(Image.fromarray(picture(48, 60)).resize((40, 32), Image.Resampling.LANCZOS))[4:28]
    assert np.array_equal(covering.colour, wanted)  # scaled alike both ways, and cut equally above and below
    same = str(save(picture(H, W), tmp_path / "same.png"))
    assert np.array_equal(read_background(same, H, W).colour, picture(H, W))


def test_colours_are_told_from_files() -> None:
    assert (read_background("#102030", H, W).colour == (16, 32, 48)).all()
    assert parse_colour("navy", "--shadow-color") == (0, 0, 128)
    for wrong in ("nofile.png", "#12345", "", "#10203040", "x" * 5000):
        with pytest.raises(UserError, match=r"^background '.*no such file and no colour"):
            read_background(wrong, H, W)
    with pytest.raises(UserError, match="intensity = 2.5 is outside"):
        composite(object_picture(picture(H, W), disk(H, W)), FULL, GROUND, 2.5)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (picture(H, W), disk(H, W + 1), r"object_image: 40 x 24 pixels, but its mask mask has 41 x 24"),
        (picture(H, W), np.zeros((H, W), np.uint8), r"mask is an empty mask"),
        (picture(H, W), np.ones((H, W), bool), r"mask is a full mask"),
        (picture(H, W), None, r"no mask was given and the picture has no transparent part"),
        (picture(H, W)[..., :2], disk(H, W), r"\(24, 40, 2\) is not \(height, width, 3 or 4\)"),
        (picture(H, W) * 1.0, disk(H, W), r"values beyond \[0, 1\]"),
        (picture(H, W), disk(H, W).astype(np.int64), r"values of type int64"),
        (np.full((H, W, 3), np.nan), disk(H, W), r"values beyond"),
        (picture(H, W), [[0, 1], [0]], r"mask: list is no picture"),
        (
            Image.fromarray(picture(H, W)[..., 0] * np.int32(1000)),
            disk(H, W),
            r"values of .* in a picture of mode I",
        ),
        (picture(4, W), disk(4, W), r"40 x 4 pixels; each side must have at least 8"),
    ],
)
def test_an_object_from_python_is_judged(image: np.ndarray, mask: np.ndarray | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        object_picture(image, mask)


def test_every_form_of_one_object_is_the_same(tmp_path: Path) -> None:
    rgb, matte = picture(H, W), disk(H, W, soft=3.0)
    image, mask = save(rgb, tmp_path / "o.png"), save(matte, tmp_path / "m.png")
    cut = save(np.dstack([rgb, matte]), tmp_path / "c.png")
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.fromarray(np.rot90(rgb)).save(turned, exif=exif)
    forms = [
        object_picture(image, str(mask)),
        object_picture(Image.open(image), Image.open(mask)),
        object_picture(rgb, matte[..., None]),
        object_picture(rgb.astype(np.float32) / 255, matte.astype(np.float32) / 255),
        object_picture(cut),
        object_picture(np.dstack([rgb, matte])),
        object_picture(turned, mask),
        object_picture(Image.open(turned), Image.open(mask)),
        object_picture(Image.open(turned), Image.open(save(np.rot90(matte), tmp_path / "t.png", exif=exif))),
        object_picture(Image.open(image), Image.open(mask).convert("RGBA")),
        object_picture(rgb, Image.fromarray(matte.astype(np.uint16) * 257)),
        object_picture(rgb, Image.fromarray(matte.astype(np.float32) / 255)),
        object_picture(torch.from_numpy(rgb), (torch.from_numpy(matte) / 255).requires_grad_()),
    ]
    for one in forms:
        assert one.size == (H, W)
        assert np.array_equal(one.colours, rgb)
        assert np.abs(one.coverage - matte / 255).max() < 1e-6
