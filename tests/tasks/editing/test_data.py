"""Folders and lists of edits: what is read, what is refused in one line, what stays together, and who may validate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.data import split_by_object
from shadowlab.errors import UserError
from shadowlab.settings import load_config
from shadowlab.tasks import open_task
from shadowlab.tasks.editing import EDITS, painted
from shadowlab.tasks.editing.dataset import has_inputs, open_dataset
from shadowlab.tasks.editing.examination import EditingExamination
from shadowlab.tasks.validation_set import WithValidation
from tests.tasks.editing.pictures import (
    disc,
    gains_of,
    make_folder,
    make_list,
    options,
    save,
    scene,
    triple,
    write_rows,
)

SIDE = 32
NAMES = list(EDITS)
GAIN_COLUMNS: dict[str, Any] = {
    f"gain_{name}": (lambda number, i=i: gains_of(number)[i]) for i, name in enumerate(("red", "green", "blue"))
}


def opened(path: Path | str, edit: str, size: int = SIDE, **given: Any) -> Any:
    return open_dataset(path, size, options(edit, **given))


def examined(path: Path, edit: str) -> tuple[list[str], dict[str, list[str]]]:
    """Problems, and which samples have which mark."""
    found = EditingExamination(path, SIDE, options(edit), renew=True)
    problems = [str(one) for one in found.problems]
    marked: dict[str, list[str]] = {mark: [] for mark in found.marks}
    for i, name in enumerate(found.ids):
        seen = found.examine(i)
        problems += [f"{name}: {one}" for one in seen.problems]
        for mark in seen.marks:
            marked[mark].append(name)
    return problems, marked


@pytest.mark.parametrize("edit", NAMES)
def test_a_list_is_read_as_the_folder_is(tmp_path: Path, edit: str) -> None:
    folder = opened(make_folder(tmp_path / "folder", edit), edit)
    listed = opened(make_list(tmp_path, edit), edit)
    assert len(folder) == len(listed) == 4 and "object of its own" in folder.notices[0]
    for i in range(4):
        made = triple(edit, i)
        for role in ("input", "target", "mask", "valid"):
            one = getattr(listed[i], role)
            assert torch.equal(one, getattr(folder[i], role))
            if role in made:
                levels = made[role] if made[role].ndim == 3 else made[role][..., None]
                assert np.array_equal((one * 255).round().permute(1, 2, 0).numpy(), levels)
        assert bool((listed[i].valid == 1).all()) and bool(listed[i].gains.isnan().all())


def test_gains_are_read_and_must_be_those_of_the_pictures(tmp_path: Path) -> None:
    path = make_list(tmp_path, "white-balance", **GAIN_COLUMNS)
    assert torch.allclose(opened(path, "white-balance")[1].gains, torch.tensor(gains_of(1)))
    assert examined(path, "white-balance")[0] == []
    wrong = GAIN_COLUMNS | {"gain_red": lambda number: gains_of(number)[0] + 0.4}
    with pytest.raises(UserError, match=r"levels from the input on average .* multiply linear light"):
        opened(make_list(tmp_path, "white-balance", **wrong), "white-balance")[0]


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "much", "1e9"])
def test_gains_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = make_list(tmp_path, "white-balance", **(GAIN_COLUMNS | {"gain_blue": lambda _: text}))
    with pytest.raises(UserError, match=r"s\.csv, line 2: gains .*; give three positive numbers"):
        opened(path, "white-balance")


def test_inputs_of_one_target_stay_together_in_a_split(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        save(scene(number), tmp_path / f"t{number}.png")
        for k in range(3):
            save(scene(100 + 3 * number + k), tmp_path / f"i{number}_{k}.png")
            rows.append({"input": f"i{number}_{k}.png", "target": f"t{number}.png"})
    found = opened(write_rows(tmp_path / "pairs.csv", rows), "white-balance")
    assert sorted(set(found.object_ids)) == [f"t{i}.png" for i in range(6)]
    split = split_by_object(found.object_ids, 0.3, 0)
    assert len(split.validation) == 6
    named = make_list(tmp_path, "white-balance", object=lambda number: f"scene {number // 2}")
    assert sorted(set(opened(named, "white-balance").object_ids)) == ["scene 0", "scene 1"]


def _row(edit: str, number: int = 0) -> dict[str, str]:
    return {role: f"files/{role}{number}.png" for role in triple(edit, number)}


@pytest.mark.parametrize(
    ("edit", "change", "told"),
    [
        ("white-balance", {"target": None}, "column target is missing"),
        ("white-balance", {"mask": "files/input0.png"}, "no column is called 'mask'"),
        ("object-removal", {"mask": None}, "column mask is missing"),
        ("object-removal", {"mask": ""}, "line 2: column mask is empty"),
        ("object-removal", {"Mask ": "x"}, "no column is called 'Mask'; did you mean mask"),
        ("white-balance", {"target": "files/none.png"}, "line 2: target: files/none.png: missing"),
        ("white-balance", {"target": "../x.png"}, "leads out"),
        ("white-balance", {"target": "/etc/passwd"}, "leads out"),
        ("white-balance", {"target": "files"}, "not a plain file"),
        ("paint-to-image", {"input": ""}, "column input is empty; fill it in every row"),
    ],
)
def test_faults_of_a_row_are_one_line_with_its_number(
    tmp_path: Path, edit: str, change: dict[str, str | None], told: str
) -> None:
    make_list(tmp_path, edit)
    rows = [{k: v for k, v in (_row(edit, i) | (change if i == 0 else {})).items() if v is not None} for i in (0, 1)]
    columns = list(dict.fromkeys(key for row in rows[:1] for key in row))
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    with pytest.raises(UserError, match=told) as caught:
        opened(write_rows(tmp_path / "pairs.csv", rows), edit)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "column input is missing"),
        ("input,target\n", "no row below"),
        ("input;target\na;b\n", "semicolons"),
        ("input,target,target\n", "there twice"),
        ("input,target\nfiles/input0.png\n", "1 cells for 2 columns"),
        ('input,target\n"files/input0.png,b\n', "not CSV"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, text: str, told: str) -> None:
    make_list(tmp_path, "white-balance")
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        opened(tmp_path / "pairs.csv", "white-balance")
    (tmp_path / "pairs.csv").write_bytes(b"input,target\n\xff\xfe,b\n")
    with pytest.raises(UserError, match="not UTF-8"):
        opened(tmp_path / "pairs.csv", "white-balance")


@pytest.mark.parametrize("edit", NAMES)
def test_a_row_twice_is_refused(tmp_path: Path, edit: str) -> None:
    make_list(tmp_path, edit)
    path = tmp_path / "pairs.csv"
    with pytest.raises(UserError, match="line 4: the row of line 2 again"):
        opened(write_rows(path, [_row(edit), _row(edit, 1), _row(edit)]), edit)
    other = _row(edit) | {"target": "files/target1.png"}
    with pytest.raises(UserError, match="line 3: the input of line 2 again, with other files"):
        opened(write_rows(path, [_row(edit), other]), edit)


def test_two_files_of_one_stem_are_two_samples(tmp_path: Path) -> None:
    make_list(tmp_path, "white-balance")
    Image.open(tmp_path / "files/input1.png").convert("RGB").save(tmp_path / "files/input0.jpg")
    rows = [_row("white-balance"), _row("white-balance", 1) | {"input": "files/input0.jpg"}]
    assert len(opened(write_rows(tmp_path / "pairs.csv", rows), "white-balance")) == 2


@pytest.mark.parametrize(
    ("role", "levels", "told"),
    [
        ("mask", np.zeros((SIDE, SIDE), np.uint8), "empty mask"),
        ("mask", np.full((SIDE, SIDE), 255, np.uint8), "full mask"),
        ("mask", scene(5), "the mask is coloured"),
        ("mask", disc(0, 16), "sizes differ"),
        ("target", scene(0, 16), "sizes differ"),
        ("input", np.concatenate([scene(0), disc(0)[..., None]], axis=2), "transparent"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(tmp_path: Path, role: str, levels: np.ndarray, told: str) -> None:
    path = make_list(tmp_path, "object-removal")
    save(levels, tmp_path / f"files/{role}0.png")
    with pytest.raises(UserError, match=told) as caught:
        opened(path, "object-removal")[0]
    assert "\n" not in str(caught.value)
    assert any(told in line for line in examined(path, "object-removal")[0])


def test_a_folder_lacks_nothing_in_silence(tmp_path: Path) -> None:
    root = make_folder(tmp_path, "object-removal")
    (root / "mask" / "s1.png").unlink()
    with pytest.raises(UserError, match=r"missing pair: no mask/s1\.png"):
        opened(root, "object-removal")
    with pytest.raises(UserError, match="folder mask/ is missing"):
        opened(make_folder(tmp_path / "other", "object-removal", without=("mask",)), "object-removal")
    with pytest.raises(UserError, match="not a data set"):
        opened(make_folder(tmp_path / "third" / "deep", "white-balance").parent, "white-balance")


def test_paintings_are_made_where_there_are_none(tmp_path: Path) -> None:
    bare = make_folder(tmp_path, "paint-to-image", without=("input",))
    prints = set()
    for kind in ("flat", "sketch"):
        found = opened(bare, "paint-to-image", model={"painting": kind})
        assert torch.equal(found[0].input, painted(found[0].target[None], kind)[0])  # type: ignore[arg-type]
        prints.add(found.fingerprint())
    assert len(prints) == 2
    edit = EDITS["paint-to-image"]
    assert not has_inputs(bare, edit) and has_inputs(make_folder(tmp_path / "both", "paint-to-image"), edit)
    listed = make_list(tmp_path / "list", "paint-to-image")
    assert has_inputs(listed, edit)
    write_rows(listed, [{"target": f"files/target{i}.png"} for i in range(4)])
    assert not has_inputs(listed, edit) and len(opened(listed, "paint-to-image")) == 4
    with pytest.raises(UserError, match="folder input/ is missing"):
        opened(bare, "white-balance")


def test_latents_of_a_painting_have_a_name_of_their_own(tmp_path: Path) -> None:
    """They are kept by part and content: two kinds of painting of one target must not share them."""
    bare = make_folder(tmp_path, "paint-to-image", without=("input",))
    parts = []
    for kind in ("flat", "sketch"):
        words = [f"data.path={bare}", f"task_options.model.painting={kind}"]
        parts.append(open_task(load_config(preset="paint-to-image-tiny", assignments=words)).latent_parts)
    assert parts[0] != parts[1] and all("input" not in one and "data" in one for one in parts)


def test_a_mask_keeps_every_pixel_that_it_touches(tmp_path: Path) -> None:
    path = make_list(tmp_path, "object-removal", side=64)
    small = opened(path, "object-removal", 16)[0].mask
    big = torch.from_numpy(disc(0, 64) > 0)[None]
    touched = big.unflatten(1, (16, 4)).unflatten(3, (16, 4)).any(dim=4).any(dim=2)
    assert bool((small[touched] == 1).all()) and float(small.mean()) < 0.5


def test_borders_are_not_valid(tmp_path: Path) -> None:
    for role in ("input", "target"):
        save(scene(0, 64)[:32], tmp_path / role / "a.png")
        save(scene(1, 64), tmp_path / role / "b.png")
    wide, square = opened(tmp_path, "white-balance", 64)
    assert float(wide.valid.mean()) == 0.5 and float(square.valid.mean()) == 1
    assert bool((wide.target[wide.valid.expand(3, -1, -1) == 0] == 0).all())


def test_data_check_says_what_is_odd(tmp_path: Path) -> None:
    path = make_list(tmp_path, "object-removal")
    assert examined(path, "object-removal") == ([], {"unchanged": [], "shadow left": [], "clipped": []})
    made = triple("object-removal", 0)
    save(np.where(disc(0)[:, ::-1, None] > 0, 0, made["input"]), tmp_path / "files/input0.png")
    save(triple("object-removal", 1)["target"], tmp_path / "files/input1.png")
    _, marked = examined(path, "object-removal")
    assert marked["shadow left"] == ["input0"] and marked["unchanged"] == ["input1"]
    found = EditingExamination(path, None, options("object-removal"), renew=True)
    said = " ".join(found.together(4, marked))
    assert "the mask must cover the shadow" in said and "nothing to learn" in said
    balance = make_list(tmp_path / "wb", "white-balance")
    save(np.full((SIDE, SIDE, 3), 255, np.uint8), tmp_path / "wb/files/input2.png")
    assert examined(balance, "white-balance")[1]["clipped"] == ["input2"]


def test_training_rows_may_not_validate(tmp_path: Path) -> None:
    path = make_list(tmp_path, "object-removal")
    for other in (path, make_list(tmp_path / "copy", "object-removal", count=2, first=3)):
        with pytest.raises(UserError, match="validation would measure memory"):
            opened(path, "object-removal", validation_path=str(other))
    apart = make_list(tmp_path / "apart", "object-removal", count=2, first=7)
    found = opened(path, "object-removal", validation_path=str(apart))
    assert isinstance(found, WithValidation) and len(found) == 6 and len(found.held_out) == 2
    told = opened(path, "object-removal", validation_path=str(path), validate_on_training_data=True)
    assert any("measure memory" in notice for notice in told.notices)


@pytest.mark.parametrize("edit", NAMES)
def test_the_lists_that_ship_are_sound_and_hold_out_a_photograph(edit: str) -> None:
    config = load_config(preset=f"{edit}-tiny")
    data = open_task(config).open_data()
    split = split_by_object(data.object_ids, config.data.validation_fraction, config.seed)
    assert len(data) >= 80 and len(split.validation) >= 16
    sample = data[split.validation[0]]
    assert sample.input.shape == (3, 128, 128) and not torch.equal(sample.input, sample.target)
    if edit == "object-removal":
        outside = (sample.mask == 0).expand(3, -1, -1)
        assert torch.equal(sample.input[outside], sample.target[outside])
    else:
        assert {data.entry(i).track for i in split.validation} == {"renders", "photographs"}
