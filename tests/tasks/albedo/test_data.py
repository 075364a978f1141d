"""Folders and lists of pairs: what is read, in which colour space, what is refused, and who may validate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.data import split_by_object
from shadowlab.errors import UserError
from shadowlab.settings import checked_section
from shadowlab.tasks.albedo.dataset import has_masks, open_dataset
from shadowlab.tasks.albedo.examination import AlbedoExamination
from shadowlab.tasks.albedo.options import AlbedoOptions
from shadowlab.tasks.validation_set import WithValidation
from tests.tasks.albedo.folders import make_folder, make_list, pair, save, to_srgb

SIDE = 32
BOTH_SRGB = {"beauty_space": "srgb", "albedo_space": "srgb"}


def options(**given: Any) -> AlbedoOptions:
    return checked_section(AlbedoOptions, given, "task_options")


def opened(path: Path | str, size: int = SIDE, **given: Any) -> Any:
    return open_dataset(path, size, options(**given))


def judged(path: Path, **given: Any) -> Any:
    found = AlbedoExamination(path, SIDE, options(**given), renew=True)
    assert not found.problems, found.problems
    numbers = [found.examine(i).numbers for i in range(len(found.ids))]
    return found.judge(range(len(numbers)), np.stack(numbers))  # type: ignore[arg-type]


@pytest.mark.parametrize("spaces", [("srgb", "srgb"), ("srgb", "linear"), ("linear", "linear"), ("linear", "srgb")])
@pytest.mark.parametrize("wanted", ["srgb", "linear"])
def test_files_of_any_space_come_in_the_models_space(tmp_path: Path, spaces: tuple[str, str], wanted: str) -> None:
    make_folder(tmp_path, 1, 1, SIDE, spaces=spaces)
    sample = opened(tmp_path, model={"space": wanted})[0]
    assert sample.space == wanted and bool((sample.valid == 1).all()) and sample.valid.shape == (1, SIDE, SIDE)
    for made, read in zip(pair(0, 0, SIDE), (sample.beauty, sample.albedo), strict=True):
        true = to_srgb(made) if wanted == "srgb" else made
        found = read.permute(1, 2, 0).double().numpy()
        assert np.abs(found - true).max() < 0.03  # dark values of 8 linear bits are coarse in sRGB
        assert np.abs(found - true).mean() < 0.004


def test_who_declares_the_space(tmp_path: Path) -> None:
    make_folder(tmp_path, 1, 1, SIDE, declared=None)
    with pytest.raises(UserError, match="never guessed"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"task_options\.albedo_space=srgb"):
        opened(tmp_path, beauty_space="srgb")
    assert opened(tmp_path, **BOTH_SRGB).spaces.albedo == "srgb"
    make_folder(tmp_path, 1, 1, SIDE, declared="linear")
    assert opened(tmp_path).spaces.beauty == "linear"
    with pytest.raises(UserError, match="declares its beauty linear"):
        opened(tmp_path, **BOTH_SRGB)
    for wrong in ({"beauty": "sRGB"}, {"beuaty": "srgb"}, 3, "gamma", ["srgb"]):
        make_folder(tmp_path, 1, 1, SIDE, declared=wrong)
        with pytest.raises(UserError, match="metadata.json"):
            opened(tmp_path)


def test_another_declaration_is_another_data_set(tmp_path: Path) -> None:
    make_folder(tmp_path, 1, 1, SIDE, declared=None)
    found = {
        opened(tmp_path, beauty_space="srgb", albedo_space=space, model={"space": wanted}).fingerprint()
        for space in ("srgb", "linear")
        for wanted in ("srgb", "linear")
    }
    assert len(found) == 4


def test_a_list_is_read_as_the_folder_is(tmp_path: Path) -> None:
    folder = opened(make_folder(tmp_path / "folder", 3, 2, SIDE))
    listed = opened(make_list(tmp_path / "list", num_objects=3, side=SIDE), **BOTH_SRGB)
    assert list(listed.ids) == list(folder.ids) and "of its own" in listed.notices[0]
    for i in range(len(folder)):
        for role in ("beauty", "albedo", "valid"):
            assert torch.equal(getattr(folder[i], role), getattr(listed[i], role))


def test_folders_of_a_list_are_objects(tmp_path: Path) -> None:
    lines = ["# beauty albedo", ""]
    for number in range(3):
        for shot in range(2):
            for role, picture in zip(("rgb", "albedo"), pair(number, shot, SIDE), strict=True):
                save(picture, tmp_path / f"set/scene_{number}/{role}_{shot}.png", "srgb")
            lines.append(f"set/scene_{number}/rgb_{shot}.png   set/scene_{number}/albedo_{shot}.png")
    (tmp_path / "train.txt").write_text("\n".join(lines))
    found = opened(tmp_path / "train.txt", **BOTH_SRGB)
    assert found.ids[:2] == ["scene_0__rgb_0", "scene_0__rgb_1"]
    assert list(found.object_ids) == [f"set/scene_{i // 2}" for i in range(6)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("beauty/a.png", "1 words"),
        ("beauty/a.png albedo/a.png valid/a.png 3", "4 words"),
        ("beauty/a.png albedo/none.png", "missing"),
        ("../b.png albedo/a.png", "leads out"),
        ("/etc/passwd albedo/a.png", "leads out"),
        ("beauty albedo/a.png", "not a plain file"),
        ("", "empty data set"),
    ],
)
def test_faults_of_a_list_are_named(tmp_path: Path, line: str, told: str) -> None:
    for role, picture in zip(("beauty", "albedo"), pair(0, 0, SIDE), strict=True):
        save(picture, tmp_path / role / "a.png", "srgb")
    (tmp_path / "pairs.txt").write_text(f"{line}\n")
    with pytest.raises(UserError, match=told):
        opened(tmp_path / "pairs.txt", **BOTH_SRGB)
    (tmp_path / "pairs.txt").write_text("beauty/a.png albedo/a.png\nbeauty/a.png albedo/a.png\n")
    with pytest.raises(UserError, match="line 1 again"):
        opened(tmp_path / "pairs.txt", **BOTH_SRGB)


def test_faults_of_a_folder_are_named(tmp_path: Path) -> None:
    def fault(change: Any) -> str:
        root = make_folder(tmp_path / change.__name__, 1, 2, SIDE)
        change(root)
        with pytest.raises(UserError) as caught:
            list(opened(root))
        return str(caught.value)

    def lonely(root: Path) -> None:
        (root / "albedo" / "obj_0000_light_0.png").unlink()

    def extra(root: Path) -> None:
        save(pair(1, 0, SIDE)[0], root / "beauty" / "more.png", "srgb")

    def copied(root: Path) -> None:
        name = "obj_0000_light_1.png"
        (root / "albedo" / name).write_bytes((root / "beauty" / name).read_bytes())

    def smaller(root: Path) -> None:
        save(pair(0, 0, 16)[1], root / "albedo" / "obj_0000_light_0.png", "srgb")

    def transparent(root: Path) -> None:
        Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 9)).save(root / "beauty" / "obj_0000_light_0.png")

    def unmasked(root: Path) -> None:
        save(np.zeros((SIDE, SIDE)), root / "valid" / "obj_0000_light_0.png", "linear")

    assert "missing pair" in fault(lonely) and "no entry" in fault(extra) and "one picture" in fault(copied)
    assert "sizes differ" in fault(smaller) and "transparent" in fault(transparent) and "is empty" in fault(unmasked)


def test_what_is_not_valid_and_what_lies_beside_the_picture_does_not_count(tmp_path: Path) -> None:
    make_folder(tmp_path / "masked", 1, 1, 64, masks=True)
    assert has_masks(tmp_path / "masked") and not has_masks(make_folder(tmp_path / "plain", 1, 1, SIDE))
    valid = opened(tmp_path / "masked", 64)[0].valid[0]
    assert not valid[:16].any() and valid[16:].all()
    wide = tmp_path / "wide"
    for role, picture in zip(("beauty", "albedo"), pair(0, 0, 64), strict=True):
        save(picture[16:48], wide / role / "a.png", "srgb")
    valid = opened(wide, 64, **BOTH_SRGB)[0].valid[0]
    assert not valid[:16].any() and valid[16:48].all() and not valid[48:].any()
    save(np.eye(64), tmp_path / "masked" / "valid" / "obj_0000_light_0.png", "linear")
    with pytest.raises(UserError, match="no block of 8 x 8 pixels is valid"):
        opened(tmp_path / "masked", 64)[0]


@pytest.mark.parametrize("true", [("srgb", "srgb"), ("srgb", "linear"), ("linear", "linear")])
@pytest.mark.parametrize("said", [("srgb", "srgb"), ("srgb", "linear"), ("linear", "linear"), ("linear", "srgb")])
def test_data_check_sees_a_space_that_is_declared_wrongly(
    tmp_path: Path, true: tuple[str, str], said: tuple[str, str]
) -> None:
    """Of beauty and albedo that are both wrong in the same way nothing shows."""
    make_folder(tmp_path, 4, 1, 64, spaces=true, declared=dict(zip(("beauty", "albedo"), said, strict=True)))
    found = judged(tmp_path)
    is_seen = true != said and not (true[0] == true[1] and said[0] == said[1])
    assert [fault.is_error for fault in found.faults] == [True] * is_seen
    if is_seen:
        assert f"beauty is declared {said[0]} and albedo {said[1]}; most likely" in found.faults[0].text


@pytest.mark.parametrize("spaces", [("srgb", "srgb"), ("srgb", "linear"), ("linear", "linear")])
def test_data_check_sees_pairs_that_are_exchanged(tmp_path: Path, spaces: tuple[str, str]) -> None:
    """All of them is an error; a few are named; none is seen in pairs as they should be."""
    names = [f"obj_{number:04d}_light_0" for number in range(8)]
    make_folder(tmp_path, 8, 1, 64, spaces=spaces)

    def found() -> tuple[list[str], list[str]]:
        examination = AlbedoExamination(tmp_path, 64, options(), renew=True)
        examined = [examination.examine(i) for i in range(8)]
        judgement = examination.judge(range(8), np.stack([one.numbers for one in examined]))  # type: ignore[arg-type]
        marked = {
            mark: [name for name, one in zip(examination.ids, examined, strict=True) if mark in one.marks]
            for mark in examination.marks
        }
        return [fault.text for fault in judgement.faults if fault.is_error], examination.together(8, marked)

    def exchange(number: int) -> None:
        for role, picture, space in zip(("beauty", "albedo"), reversed(pair(number, 0, 64)), spaces, strict=True):
            save(picture, tmp_path / role / f"{names[number]}.png", space)

    assert found() == ([], [])
    exchange(5)
    errors, notices = found()
    assert errors == [] and "1 of 8 pairs look exchanged (first obj_0005_light_0)" in notices[0]
    for number in (0, 1, 2, 3, 4, 6, 7):
        exchange(number)
    errors, notices = found()
    assert "beauty and albedo are exchanged; exchange the two folders" in errors[0] and notices == []


def test_a_validation_set_of_its_own(tmp_path: Path) -> None:
    training = make_folder(tmp_path / "train", 3, 2, SIDE)
    other = make_folder(tmp_path / "other", 2, 2, SIDE, first=10)
    found = opened(training, validation_path=str(other))
    assert isinstance(found, WithValidation) and len(found) == 10 and found.shared == ""
    split = split_by_object(found.object_ids, 0.3, 0, found.held_out)
    assert split.train == list(range(6)) and split.validation == list(range(6, 10))
    assert found[6].id == found.ids[6] == found.entry(6).id == "validation obj_0010_light_0"
    assert torch.equal(found[6].albedo, opened(other)[0].albedo)
    assert found.fingerprint() != opened(training).fingerprint()


def test_validation_on_training_data_is_refused_and_said(tmp_path: Path) -> None:
    """The same set, a copy of it, one shared picture, and other lights of the same objects."""
    training = make_folder(tmp_path / "train", 3, 2, SIDE)
    copy = make_folder(tmp_path / "copy", 3, 2, SIDE)
    overlap = make_folder(tmp_path / "overlap", 2, 2, SIDE, first=2)
    for path in (training, copy, overlap):
        with pytest.raises(UserError, match="validation would measure memory"):
            opened(training, validation_path=str(path))
        found = opened(training, validation_path=str(path), validate_on_training_data=True)
        assert found.shared and "VALIDATED ON TRAINING DATA" in found.notices[-1]
        split = split_by_object(found.object_ids, 0.3, 0, found.held_out)
        assert not {found.object_ids[i] for i in split.train} & {found.object_ids[i] for i in split.validation}
    lists = make_folder(tmp_path / "lists", 3, 2, SIDE)
    stems = sorted(file.stem for file in (lists / "beauty").iterdir())
    for name, own in (("a.txt", stems[::2]), ("b.txt", stems[1::2])):
        (lists / name).write_text("\n".join(f"beauty/{stem}.png albedo/{stem}.png" for stem in own))
    with pytest.raises(UserError, match="3 of its 3 samples"):
        opened(lists / "a.txt", validation_path=str(lists / "b.txt"))


@pytest.mark.parametrize(
    "given",
    [
        {"model": {"objective": "x0"}},
        {"model": {"noise_strength": 1.5}},
        {"model": {"one_step": True, "objective": "epsilon"}},
        {"model": {"one_step": True, "noise_strength": 0.5}},
        {"beauty_space": "sRGB"},
        {"validation_path": ""},
        {"objective": "v"},
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="task_options"):
        options(**given)


def test_metadata_that_is_no_metadata_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, 1, 1, SIDE)
    for content in ("[]", "{", '{"samples": 3}', '{"sample": {}}', '{"samples": {"a/b": {}}}', '{"samples": {"a": 1}}'):
        (tmp_path / "metadata.json").write_text(content)
        with pytest.raises(UserError):
            opened(tmp_path, **BOTH_SRGB)
    (tmp_path / "metadata.json").write_text(json.dumps({"samples": {"obj_0000_light_0": {}}}))
    assert opened(tmp_path, **BOTH_SRGB).object_ids == ["obj_0000_light_0"]
