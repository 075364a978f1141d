"""A CSV file of rows: read as it stands, or refused in a line that names the row."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from shadowlab.data import split_by_object
from shadowlab.errors import UserError
from shadowlab.settings import checked_section
from shadowlab.tasks.insertion.dataset import InsertionDataset, open_dataset
from shadowlab.tasks.insertion.examination import InsertionExamination
from shadowlab.tasks.insertion.options import InsertionOptions
from shadowlab.tasks.insertion.samples import InsertionSample, collate
from shadowlab.tasks.validation_set import WithValidation
from tests.tasks.insertion.rows import HEADER, make_rows, object_of, row_of, save, tensor

SIDE = 64


def opened(path: Path, **options: object) -> InsertionDataset | WithValidation[InsertionSample]:
    return open_dataset(path, SIDE, checked_section(InsertionOptions, options, "task_options"))


def read_all(path: Path) -> None:
    data = opened(path)
    for i in range(len(data)):
        data[i]


def test_rows_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    path = make_rows(tmp_path)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\r\n".join(f' {c} , {a}, "{b}"' for a, b, c in lines).replace('"object_image"', "object_image"))
    data = opened(path)
    assert list(data.ids) == [f"shots__shot_{n}_{k}" for n in range(3) for k in range(2)]
    assert data.object_ids[0] == data.object_ids[1] != data.object_ids[2]
    target, mask = row_of(1, 1, 64, 64)
    sample = data[3]
    assert torch.equal(sample.target, tensor(target)) and torch.equal(
        sample.mask[0], torch.from_numpy(mask / 255.0).float()
    )
    assert sample.object.shape == (3, SIDE, SIDE) and sample.shown


def test_other_sizes_get_grey_borders_and_the_mask_none_there(tmp_path: Path) -> None:
    sample = opened(make_rows(tmp_path, size=(50, 90)))[0]
    assert sample.target.shape == (3, SIDE, SIDE) and sample.mask.unique().tolist() == [0, 1]
    border = (SIDE - round(50 * SIDE / 90)) // 2
    assert (sample.target[:, :border] == 0.5).all() and not sample.mask[:, :border].any()


def _mode(mode: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        file = root / "masks/shot_1_0.png"
        Image.open(file).convert(mode).save(file)

    return change


def _rewritten(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def rewrite(root: Path) -> None:
        path = root / "rows.csv"
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return rewrite


def _row(number: int, text: str) -> Callable[[Path], None]:
    """The file's line of this number replaced."""
    return _rewritten(lambda lines: [*lines[: number - 1], text, *lines[number:]])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no column": (_rewritten(lambda lines: ["target_image,mask", *lines[1:]]), r"row 1: no column object_image"),
    "no header": (_rewritten(lambda lines: lines[1:]), r"row 1: no column target_image, object_image, mask"),
    "unknown column": (_row(1, HEADER + ",prompt_embeding"), r"row 1: unknown column 'prompt_embeding'"),
    "column twice": (_row(1, HEADER + ",mask"), r"row 1: two columns mask"),
    "empty file": (_rewritten(lambda lines: []), r"row 1: no column .* the file is empty"),
    "no rows": (_rewritten(lambda lines: lines[:1]), r"empty data set"),
    "too few fields": (_row(4, "shots/shot_1_0.png,objects/thing_1.png"), r"row 4: 2 fields, and the header has 3"),
    "too many fields": (_row(4, "a.png,b.png,c.png,d.png"), r"row 4: 4 fields"),
    "empty field": (_row(4, "shots/shot_1_0.png,,masks/shot_1_0.png"), r"row 4: no object_image"),
    "absolute path": (
        _row(4, "/etc/a.png,objects/thing_1.png,masks/shot_1_0.png"),
        r"row 4: target_image '/etc/a.png' leads",
    ),
    "leads out": (
        _row(4, "shots/shot_1_0.png,../x.png,masks/shot_1_0.png"),
        r"row 4: object_image '../x.png' leads out",
    ),
    "row twice": (_rewritten(lambda lines: [*lines, lines[3]]), r"row 8: the same pictures as row 4"),
    "missing target": (lambda root: (root / "shots/shot_1_0.png").unlink(), r"row 4, target_image: .*missing"),
    "missing object": (lambda root: (root / "objects/thing_1.png").unlink(), r"row 4, object_image: .*missing"),
    "missing mask": (lambda root: (root / "masks/shot_1_0.png").unlink(), r"row 4, mask: .*missing"),
    "mask of colours": (_mode("RGB"), r"row 4, mask: masks/shot_1_0.png: a mask of mode RGB; .*convert\(\"L\"\)"),
    "mask with alpha": (_mode("LA"), r"row 4, mask: .*mode LA"),
    "mask with palette": (_mode("P"), r"row 4, mask: .*mode P"),
    "mask of 16 bits": (_mode("I;16"), r"row 4, mask: .*mode I"),
    "empty mask": (
        lambda root: save(np.zeros((64, 64), np.uint8), root / "masks/shot_1_0.png"),
        r"row 4, mask: .*empty mask: its brightest value is 0",
    ),
    "dark mask": (
        lambda root: save(np.full((64, 64), 127, np.uint8), root / "masks/shot_1_0.png"),
        r"row 4, mask: .*brightest value is 127 of 255 and 128 counts",
    ),
    "mask of ones": (
        lambda root: save(np.eye(64, dtype=np.uint8), root / "masks/shot_1_0.png"),
        r"row 4, mask: .*0/1 mask\? multiply by 255",
    ),
    "another size": (
        lambda root: save(row_of(1, 0, 64, 72)[1], root / "masks/shot_1_0.png"),
        r"row 4: sizes differ: shots/shot_1_0.png 64 x 64, masks/shot_1_0.png 72 x 64",
    ),
    "damaged target": (
        lambda root: (root / "shots/shot_1_0.png").write_bytes(b"\x89PNG\r\n\x1a\nxx"),
        r"row 4, target_image: .*damaged",
    ),
    "object is the target": (
        lambda root: (root / "objects/thing_1.png").write_bytes((root / "shots/shot_1_0.png").read_bytes()),
        r"row 4: object_image is the target, bit for bit",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_that_names_file_and_row(tmp_path: Path, name: str) -> None:
    spoil, wanted = FAULTS[name]
    path = make_rows(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=wanted) as found:
        read_all(path)
    assert "\n" not in str(found.value) and "rows.csv" in str(found.value)
    examined = InsertionExamination(path, SIDE, renew=True)
    listed = [str(one) for one in examined.problems]
    listed += [text for i in range(len(examined.ids)) for text in examined.examine(i).problems]
    assert sum(bool(re.search(wanted, text)) for text in listed) == 1  # data check says the same, once


def test_a_mask_is_white_from_128_on(tmp_path: Path) -> None:
    path = make_rows(tmp_path)
    levels = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    levels[:, 32] = 127
    levels[:, 33] = 128
    save(levels, tmp_path / "masks/shot_0_0.png")
    mask = opened(path)[0].mask[0, 0]
    assert mask[:33].sum() == 0 and mask[33:].all()


def test_rows_with_one_object_are_never_separated_and_a_column_may_name_it(tmp_path: Path) -> None:
    path = make_rows(tmp_path, num_objects=4)
    data = opened(path)
    split = split_by_object(data.object_ids, 0.4, 0, frozenset())
    assert not {data.object_ids[i] for i in split.train} & {data.object_ids[i] for i in split.validation}
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0] + ",object", *(f"{line},{'cup' if i < 5 else ''}" for i, line in enumerate(lines[1:]))])
    )
    assert list(opened(path).object_ids[:5]) == ["cup"] * 5 and opened(path).object_ids[5] == "objects/thing_2.png"


@pytest.mark.parametrize("same", ["the file", "its rows", "one target", "one object"])
def test_training_rows_in_the_validation_file_are_refused_by_their_row(tmp_path: Path, same: str) -> None:
    training = make_rows(tmp_path, num_objects=2)
    validation = tmp_path / "validation.csv"
    if same == "the file":
        validation = training
    elif same == "its rows":
        validation.write_text(training.read_text().replace(HEADER, "target_image,object_image,mask"))
    else:
        target, mask = row_of(7, 3, 64, 64)
        save(object_of(7), tmp_path / "objects/other.png")
        save(mask, tmp_path / "masks/other.png")
        save(target, tmp_path / "shots/other.png")
        rows = [HEADER, "shots/other.png,objects/other.png,masks/other.png"]
        copied = tmp_path / "shots/copy.png"
        copied.write_bytes((tmp_path / "shots/shot_0_0.png").read_bytes())
        second = "shots/copy.png,objects/other.png,masks/shot_0_0.png"
        rows.append(second if same == "one target" else "shots/other.png,objects/thing_0.png,masks/other.png")
        validation.write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"training set|row 3 of validation\.csv") as found:
        opened(training, validation_path=str(validation))
    assert "\n" not in str(found.value)
    permitted = opened(training, validation_path=str(validation), validate_on_training_data=True)
    assert any("VALIDATED ON TRAINING DATA" in notice for notice in permitted.notices)


def test_other_rows_are_held_out_for_validation(tmp_path: Path) -> None:
    training = make_rows(tmp_path / "a", num_objects=2)
    other = make_rows(tmp_path / "b", num_objects=5)
    lines = other.read_text().splitlines()
    other.write_text("\n".join([lines[0], *lines[5:]]))  # objects 2 .. 4
    data = opened(training, validation_path=str(other))
    assert isinstance(data, WithValidation) and data.shared == "" and len(data) == 4 + 6


def test_a_row_may_bring_the_embedding_of_a_prompt(tmp_path: Path) -> None:
    path = make_rows(tmp_path)
    lines = path.read_text().splitlines()
    told = [torch.randn(3, 64) for _ in lines[1:]]
    for i, one in enumerate(told):
        save_file({"prompt_embedding": one}, tmp_path / f"prompt_{i}.safetensors")
    named = [f"{line},prompt_{i}.safetensors" for i, line in enumerate(lines[1:])]
    path.write_text("\n".join([lines[0] + ",prompt_embedding", *named]))
    data = opened(path)
    assert all(torch.equal(data[i].prompt, one) for i, one in enumerate(told))  # type: ignore[arg-type]
    assert collate([data[0], data[1]]).prompt is not None
    path.write_text("\n".join([lines[0] + ",prompt_embedding", *named[:2], f"{lines[3]},", *named[3:]]))
    with pytest.raises(UserError, match="row 4: no prompt_embedding, and 5 other rows have one"):
        opened(path)
    save_file({"embedding": told[0]}, tmp_path / "prompt_0.safetensors")
    path.write_text("\n".join([lines[0] + ",prompt_embedding", *named]))
    with pytest.raises(UserError, match="row 2, prompt_embedding: .*holds no tensor `prompt_embedding`, but embedding"):
        opened(path)[0]
    save_file({"prompt_embedding": told[0][:2].clone()}, tmp_path / "prompt_0.safetensors")
    with pytest.raises(UserError, match="another shape than that of other rows"):
        collate([opened(path)[1], opened(path)[0]])


def test_the_shipped_rows_are_read_and_are_as_large_as_they_say() -> None:
    data = open_dataset("embedded", SIDE, InsertionOptions())
    assert len(data) == 128 and len(set(data.object_ids)) == 32
    sample = data[17]
    assert sample.target.shape == (3, 64, 64) and 0.02 < float(sample.mask.mean()) < 0.5
