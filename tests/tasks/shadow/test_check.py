"""The full check: it lists everything, and agrees with what training accepts."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shadowlab.data.sources import Problem
from shadowlab.errors import UserError
from shadowlab.examination import listing
from shadowlab.tasks.shadow.dataset import open_dataset
from tests.tasks.shadow.checked import check_dataset
from tests.tasks.shadow.sound import encode, make_folder, make_tar, mask_picture, softness_members, write_metadata


def test_sound_sets_have_no_problem(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", num_samples=5)
    report = check_dataset(tmp_path / "set")
    assert (report.num_samples, report.num_objects, report.problems, report.notices) == (5, 3, [], [])
    report = check_dataset(make_tar(tmp_path / "x.tar", softness_members(6)), image_size=16)
    assert (report.num_samples, report.num_objects, report.problems) == (6, 2, [])
    assert "CC-BY-NC-4.0" in report.notices[0]


def test_all_problems_are_listed_not_the_first_alone(tmp_path: Path) -> None:
    metadata = make_folder(tmp_path, num_samples=6)
    write_metadata(tmp_path, {**metadata, "img_00000": {"theta": 50, "phi": True, "sise": 4}})
    (tmp_path / "shadows/img_00000.png").write_bytes(b"")
    (tmp_path / "masks/img_00000.png").write_bytes(encode(Image.new("L", (32, 32))))
    (tmp_path / "masks/img_00002.png").unlink()
    (tmp_path / "objects/img_00002.png").write_bytes(b"text")
    (tmp_path / "objects/img_00009.png").write_bytes(b"text")
    lines = [str(problem) for problem in check_dataset(tmp_path).problems]
    fragments = [
        "img_00000: metadata.json: unknown key 'sise'; the nearest valid key is 'size'",
        "img_00000: metadata.json: light theta = 50",
        "img_00000: metadata.json: phi is true",
        "img_00000: metadata.json: key 'size' is missing",
        "img_00000: shadows/img_00000.png: the file is empty",
        "img_00000: masks/img_00000.png: empty mask",
        "img_00002: missing pair: no masks/img_00002.png",
        "img_00002: objects/img_00002.png: not a PNG or JPEG",
        "img_00009: objects/img_00009.png: no entry",
    ]
    assert len(lines) == len(fragments), lines
    assert [fragment for fragment in fragments if not any(fragment in line for line in lines)] == []


def test_what_is_only_odd_is_a_notice(tmp_path: Path) -> None:
    metadata = make_folder(tmp_path, num_samples=5)
    (tmp_path / "shadows/img_00001.png").write_bytes(encode(Image.new("L", (32, 32))))
    for role in ("object", "mask", "shadow"):
        data = (tmp_path / f"{role}s/img_00003.png").read_bytes()
        (tmp_path / f"{role}s/img_00004.png").write_bytes(data)
    write_metadata(tmp_path, metadata)
    report = check_dataset(tmp_path)
    assert report.problems == []
    assert report.notices == [
        "img_00001: the shadow map is 0 everywhere; bright = shadow",
        "img_00003 and img_00004: nearly the same pictures under two ids",
    ]
    open_dataset(tmp_path, 32)[1]  # training reads it


def inverted(path: Path, role: str, samples: range) -> None:
    for i in samples:
        file = path / f"{role}s/img_{i:05d}.png"
        file.write_bytes(encode(Image.fromarray(255 - np.asarray(Image.open(file)))))


def test_inverted_masks_are_noticed(tmp_path: Path) -> None:
    make_folder(tmp_path, num_samples=6)
    inverted(tmp_path, "mask", range(1, 5))
    report = check_dataset(tmp_path)
    assert report.problems == []
    [notice] = report.notices
    assert notice.startswith("4 of 6 masks (img_00001, img_00002, img_00003, ...) mark most of the picture")
    assert "white = object; save 255 - value" in notice


@pytest.mark.parametrize("which", ["large", "cut off"])
def test_a_large_object_is_no_inverted_mask(tmp_path: Path, which: str) -> None:
    make_folder(tmp_path, num_samples=4)
    mask = np.zeros((32, 32), np.uint8)
    mask[slice(1, 31) if which == "large" else slice(16, 32), slice(1, 31) if which == "large" else slice(0, 32)] = 255
    (tmp_path / "masks/img_00000.png").write_bytes(encode(Image.fromarray(mask)))
    assert check_dataset(tmp_path).notices == []


@pytest.mark.parametrize(("count", "noticed"), [(6, True), (4, True), (3, False)])
def test_mostly_white_shadow_maps_are_noticed(tmp_path: Path, count: int, noticed: bool) -> None:
    make_folder(tmp_path, num_samples=6)
    for i in range(6):
        shadow = np.zeros((32, 32), np.uint8)
        shadow[20:26, 5 + i : 20] = 200  # another one for each, so that none are duplicates
        (tmp_path / f"shadows/img_{i:05d}.png").write_bytes(encode(Image.fromarray(shadow)))
    assert check_dataset(tmp_path).notices == []
    inverted(tmp_path, "shadow", range(count))
    notices = check_dataset(tmp_path).notices
    assert [notice.startswith(f"{count} of 6 shadow maps (img_00000, ") for notice in notices] == [True] * noticed
    assert not noticed or "255 = full shadow" in notices[0]


def test_a_single_object_cannot_be_split(tmp_path: Path) -> None:
    make_folder(tmp_path, num_samples=2)
    [notice] = check_dataset(tmp_path).notices
    assert "all samples show one object, obj_0000: train cannot split them" in notice


def test_listing_shows_three_of_a_kind_and_counts_the_others() -> None:
    lines = [f"cup{i}: masks/cup{i}.png: coloured (by {i} of 255)" for i in range(6)] + ["metadata.json: other"]
    assert listing(lines) == [
        *lines[:3],
        "metadata.json: other",
        "and 3 more like: cup0: masks/cup0.png: coloured (by 0 of 255)",
    ]
    assert listing(lines[2:5]) == lines[2:5]


def test_near_duplicates_survive_another_export_but_other_shadows_do_not_count(tmp_path: Path) -> None:
    make_folder(tmp_path, num_samples=4)
    pictures = {}
    for role in ("object", "mask", "shadow"):
        pictures[role] = np.asarray(Image.open(tmp_path / f"{role}s/img_00000.png"))
        (tmp_path / f"{role}s/img_00001.png").write_bytes(encode(Image.fromarray(pictures[role])))
    flicker = np.random.default_rng(0).integers(0, 2, (32, 32), dtype=np.uint8)
    brighter = np.minimum(pictures["shadow"], 254) + flicker
    (tmp_path / "shadows/img_00001.png").write_bytes(encode(Image.fromarray(brighter.astype(np.uint8))))
    for role in ("object", "mask"):  # one object under another light
        (tmp_path / f"{role}s/img_00002.png").write_bytes(encode(Image.fromarray(pictures[role])))
    assert check_dataset(tmp_path).notices == ["img_00000 and img_00001: nearly the same pictures under two ids"]


def test_with_an_image_size_what_gets_lost_there_is_a_problem(tmp_path: Path) -> None:
    make_folder(tmp_path)
    mask = mask_picture().point(lambda value: 0)
    mask.putpixel((5, 5), 255)
    (tmp_path / "masks/img_00000.png").write_bytes(encode(mask))
    assert check_dataset(tmp_path).problems == []
    lines = [str(problem) for problem in check_dataset(tmp_path, image_size=8).problems]
    assert len(lines) == 1
    assert lines[0].startswith("img_00000: masks/img_00000.png: the mask is empty at 8 x 8")


def test_a_file_too_large_for_a_picture_is_not_read(tmp_path: Path) -> None:
    """8 TB with nothing in them: a slip of `truncate`, or malice."""
    make_folder(tmp_path)
    os.truncate(tmp_path / "shadows/img_00001.png", 8 << 40)
    lines = [str(problem) for problem in check_dataset(tmp_path).problems]
    assert lines == [
        "img_00001: shadows/img_00001.png: 8,192.0 GiB, at most 1 are read; replace it by the picture",
    ]
    with pytest.raises(UserError, match="img_00001: shadows/img_00001.png: 8,192.0 GiB"):
        open_dataset(tmp_path, 32)[1]


def test_a_size_that_no_memory_holds(tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(UserError, match="image_size = 80000 must be at most 4096"):
        check_dataset(tmp_path, 80000)


def test_a_path_too_long_for_a_file_system() -> None:
    with pytest.raises(UserError, match="File name too long"):
        open_dataset("x" * 300, 32)


def test_check_refuses_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a data set"):
        check_dataset(tmp_path)
    make_folder(tmp_path / "set")
    with pytest.raises(UserError, match="multiple of 8"):
        check_dataset(tmp_path / "set", image_size=20)


def test_a_problem_is_one_line_whatever_is_in_the_names() -> None:
    text = str(Problem("a\nb\udcff", "x\r\x1b[31m\u2028y"))
    assert text == "a\\nb\\udcff: x\\r\\x1b[31m\\u2028y"
