"""The folder layout, and what every data set promises."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.tasks.shadow import dataset as dataset_module
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.folder import FolderDataset
from shadowlab.tasks.shadow.samples import collate
from tests.tasks.shadow.sound import encode, make_folder, mask_picture, object_picture, shadow_picture, write_metadata


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_folder(tmp_path / "set", num_samples=5)
    return tmp_path / "set"


def test_samples_are_what_the_files_hold(folder: Path) -> None:
    dataset = open_dataset(folder, 32)
    assert (dataset.name, len(dataset), dataset.notices) == ("set", 5, [])
    assert dataset.ids == [f"img_{i:05d}" for i in range(5)]
    assert dataset.object_ids == ["obj_0000", "obj_0000", "obj_0001", "obj_0001", "obj_0002"]
    for i, name in enumerate(dataset.ids):
        sample = dataset[i]
        assert (sample.id, sample.object_id, sample.track) == (name, dataset.object_ids[i], None)
        assert sample.light.tolist() == [15.0, 45.0 * i, 4.0]
        assert sample.object_image.shape == (3, 32, 32)
        assert sample.mask.shape == sample.shadow.shape == (1, 32, 32)
        tensors = (sample.object_image, sample.mask, sample.shadow, sample.light)
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
        assert sample.shadow.unique().numel() > 100  # grey, not binarised


def test_collate_stacks_in_order_and_moves(folder: Path) -> None:
    dataset = open_dataset(folder, 16)
    batch = collate([dataset[3], dataset[1]])
    assert batch.ids == ["img_00003", "img_00001"]
    assert len(batch) == 2
    assert batch.object_image.shape == (2, 3, 16, 16)
    assert batch.mask.shape == batch.shadow.shape == (2, 1, 16, 16)
    assert torch.equal(batch.light[1], dataset[1].light)
    moved = batch.to("meta")
    assert moved.shadow.is_meta
    assert moved.ids == batch.ids
    with pytest.raises(ValueError, match="at least one"):
        collate([])


def test_light_size_is_a_synonym_and_track_is_kept(folder: Path) -> None:
    write_metadata(folder, {f"img_{i:05d}": {"theta": 1, "phi": 2, "light_size": 3, "track": "a"} for i in range(5)})
    sample = open_dataset(folder, 32)[4]
    assert sample.light.tolist() == [1.0, 2.0, 3.0]
    assert sample.track == "a"


def test_without_object_each_sample_is_its_own_and_a_notice_says_so(folder: Path) -> None:
    light = {"theta": 1, "phi": 2, "size": 3}
    write_metadata(folder, {f"img_{i:05d}": {**light, "object": "a"} if i < 2 else light for i in range(5)})
    dataset = open_dataset(folder, 32)
    assert dataset.object_ids == ["a", "a", "img_00002", "img_00003", "img_00004"]
    assert [notice[:31] for notice in dataset.notices] == ["3 of 5 samples name no `object`"]


def test_metadata_with_a_byte_order_mark_and_any_order_of_entries(folder: Path) -> None:
    before = open_dataset(folder, 32)
    text = (folder / "metadata.json").read_text()
    pairs = text.strip("{}").split("}, ")
    reordered = "{" + ", ".join(part.rstrip("}") + "}" for part in reversed(pairs)) + "}"
    (folder / "metadata.json").write_bytes(b"\xef\xbb\xbf" + reordered.encode())
    after = open_dataset(folder, 32)
    assert after.ids == before.ids
    assert after.fingerprint() == before.fingerprint()


def test_object_may_be_jpeg_and_hidden_files_are_ignored(folder: Path) -> None:
    (folder / "objects/img_00000.png").unlink()
    (folder / "objects/img_00000.JPEG").write_bytes(encode(object_picture(0), "JPEG"))
    (folder / "masks/.DS_Store").write_bytes(b"x")
    assert len(open_dataset(folder, 32)) == 5


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "objects/img_00001.png").unlink()
    (folder / "objects/img_00001.png").symlink_to("img_00000.png")
    dataset = open_dataset(folder, 32)
    assert torch.equal(dataset[0].object_image, dataset[1].object_image)


def test_picture_that_is_not_square_keeps_its_aspect(folder: Path) -> None:
    for role, image in (("object", object_picture(0)), ("mask", mask_picture()), ("shadow", shadow_picture(0))):
        (folder / f"{role}s/img_00000.png").write_bytes(encode(image.crop((0, 0, 32, 16))))
    sample = open_dataset(folder, 32)[0]
    for rows in (slice(0, 8), slice(24, 32)):  # padded above and below
        assert not sample.shadow[:, rows].any()
        assert not sample.mask[:, rows].any()
        assert not sample.object_image[:, rows].any()
    assert sample.shadow[:, 8:24].mean() > 0.4


def test_fingerprint_follows_the_content_not_the_place(folder: Path, tmp_path: Path) -> None:
    fingerprint = open_dataset(folder, 32).fingerprint()
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_dataset(tmp_path / "elsewhere", 64).fingerprint() == fingerprint
    (tmp_path / "elsewhere/shadows/img_00000.png").write_bytes(encode(shadow_picture(77).resize((31, 32))))
    assert FolderDataset(tmp_path / "elsewhere", 64).fingerprint() != fingerprint
    metadata = make_folder(tmp_path / "third", num_samples=5)
    assert open_dataset(tmp_path / "third", 32).fingerprint() == fingerprint
    write_metadata(tmp_path / "third", {**metadata, "img_00000": {**metadata["img_00000"], "theta": 16.0}})
    assert open_dataset(tmp_path / "third", 32).fingerprint() != fingerprint


def test_dataset_travels_to_workers(folder: Path) -> None:
    dataset = open_dataset(folder, 32)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[2].shadow, dataset[2].shadow)


def test_opening_decodes_nothing_and_a_bad_sample_stops_only_when_read(folder: Path) -> None:
    (folder / "shadows/img_00003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = open_dataset(folder, 32)
    assert dataset[2].id == "img_00002"
    with pytest.raises(UserError, match=r"^img_00003: shadows/img_00003.png: truncated or damaged picture"):
        dataset[3]


def test_file_that_vanishes_after_opening_is_named(folder: Path) -> None:
    dataset = open_dataset(folder, 32)
    (folder / "masks/img_00002.png").unlink()
    with pytest.raises(UserError, match=r"^img_00002: masks/img_00002.png: cannot be read"):
        dataset[2]


def test_refusal_names_the_first_problem_and_counts_the_others(folder: Path) -> None:
    for i in range(3):
        (folder / f"masks/img_{i:05d}.png").unlink()
    with pytest.raises(UserError) as caught:
        open_dataset(folder, 32)
    message = str(caught.value)
    assert "img_00000: missing pair" in message
    assert "(and at least 2 more)" in message
    assert message.endswith(f"run: shadowlab data check {folder}")


def test_mask_too_thin_for_the_image_size_names_the_sample(folder: Path) -> None:
    mask = mask_picture().point(lambda value: 0)
    mask.putpixel((5, 5), 255)
    (folder / "masks/img_00000.png").write_bytes(encode(mask))
    with pytest.raises(UserError, match=r"^img_00000: masks/img_00000.png: the mask is empty at 8 x 8"):
        open_dataset(folder, 8)[0]


# --- paths ---


@pytest.mark.parametrize("image_size", [0, 20, True])
def test_image_size_is_checked_on_opening(folder: Path, image_size: int) -> None:
    with pytest.raises(UserError, match="multiple of 8"):
        open_dataset(folder, image_size)


def test_unknown_paths_say_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match=r"objects/, masks/, shadows/ and metadata.json.*\.tar.*embedded"):
            open_dataset(path, 32)


def test_embedded_names_the_shipped_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "EMBEDDED_PATH", folder)
    assert open_dataset("embedded", 32).name == "embedded"
    monkeypatch.setattr(dataset_module, "EMBEDDED_PATH", folder / "nowhere")
    with pytest.raises(MissingDependencyError, match="install shadowlab again"):
        open_dataset("embedded", 32)
