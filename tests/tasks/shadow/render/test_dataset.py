"""The data set on disk: files, determinism, refusals."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.tasks.shadow.folder import FolderDataset
from shadowlab.tasks.shadow.render import dataset as rendering
from shadowlab.tasks.shadow.render.gathering import Gathering
from shadowlab.tasks.shadow.render.scene import BACKGROUND

pytest.importorskip("mitsuba", reason="rendering is optional: pip install mitsuba trimesh")

EMBEDDED = Path(__file__).parents[4] / "shadowlab" / "assets" / "renders"
SMALL = {"num_objects": 2, "lights_per_object": 2, "image_size": 24, "samples_per_pixel": 9, "seed": 11}


def render_dataset(out: Path, **arguments: Any) -> int:
    return rendering.render_dataset(out, SingleProcess(torch.device("cpu")), Reporter(active=False), **arguments)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("render") / "deep" / "data"
    assert render_dataset(out, **SMALL) == 4
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(path: Path, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == mode
        return np.asarray(image)


def test_files_and_metadata(rendered: Path) -> None:
    metadata = json.loads((rendered / "metadata.json").read_text())
    assert list(metadata) == ["obj_0000_light_0", "obj_0000_light_1", "obj_0001_light_0", "obj_0001_light_1"]
    assert [entry["object"] for entry in metadata.values()] == ["obj_0000", "obj_0000", "obj_0001", "obj_0001"]
    assert set(digests(rendered)) == {
        "metadata.json",
        *(f"{folder}/{name}.png" for folder in ("objects", "masks", "shadows") for name in metadata),
    }
    for name in metadata:
        picture = pixels(rendered / "objects" / f"{name}.png", "RGB")
        mask = pixels(rendered / "masks" / f"{name}.png", "L")
        shadow = pixels(rendered / "shadows" / f"{name}.png", "L")
        assert picture.shape == (24, 24, 3)
        assert mask.shape == shadow.shape == (24, 24)
        assert (picture[mask == 0] == BACKGROUND).all()
        assert (mask > 127).any()
        assert shadow.max() > 100
        assert (shadow == 0).mean() > 0.5


def test_the_reader_takes_it(rendered: Path) -> None:
    data = FolderDataset(rendered, image_size=32)
    assert len(data) == 4
    assert data[0].shadow.shape[-2:] == (32, 32)


def test_object_and_mask_are_the_same_under_every_light(rendered: Path) -> None:
    files = digests(rendered)
    for folder in ("objects", "masks"):
        assert files[f"{folder}/obj_0000_light_0.png"] == files[f"{folder}/obj_0000_light_1.png"]
    assert files["shadows/obj_0000_light_0.png"] != files["shadows/obj_0000_light_1.png"]
    assert files["objects/obj_0000_light_0.png"] != files["objects/obj_0001_light_0.png"]


def test_same_command_same_bytes_whatever_the_number_of_threads(rendered: Path, tmp_path: Path) -> None:
    import drjit

    threads = drjit.thread_count()
    try:
        drjit.set_thread_count(1 if threads > 1 else 2)
        render_dataset(tmp_path / "again", **SMALL)
    finally:
        drjit.set_thread_count(threads)
    assert digests(tmp_path / "again") == digests(rendered)


def test_more_objects_and_lights_leave_the_first_as_they_are(rendered: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path / "more", **{**SMALL, "num_objects": 3, "lights_per_object": 3})
    first, more = digests(rendered), digests(tmp_path / "more")
    assert all(more[name] == digest for name, digest in first.items() if name != "metadata.json")


def test_another_seed_is_another_set(rendered: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path / "other", **{**SMALL, "seed": 12})
    first, other = digests(rendered), digests(tmp_path / "other")
    assert all(first[name] != digest for name, digest in other.items())


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"the folder is not empty; give a new one") as caught:
        render_dataset(tmp_path, **SMALL)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(UserError, match=r"notes\.txt: is a file; give a folder"):
        render_dataset(tmp_path / "notes.txt", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    render_dataset(out, **{**SMALL, "num_objects": 1, "lights_per_object": 1})
    assert (out / "metadata.json").is_file()


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, do: Any) -> list[str]:
    """Have `do` called before that sample is saved; returns the names of those that were."""
    original, saved = Gathering.save, []

    def save(self: Gathering, pictures: Any) -> None:
        if len(saved) == number:
            do()
        original(self, pictures)
        saved.append(Path(next(iter(pictures))).name)

    monkeypatch.setattr(Gathering, "save", save)
    return saved


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupted_render_goes_on(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    stop_at(monkeypatch, 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        render_dataset(out, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    with pytest.raises(UserError, match=r"other options was begun in .*\.out\.partial .*remove that folder"):
        render_dataset(out, **{**SMALL, "seed": 12})
    victim = tmp_path / ".out.partial" / "shadows" / "obj_0000_light_1.png"
    victim.write_bytes(victim.read_bytes()[:-1])  # as a power cut may leave it
    monkeypatch.undo()
    saved = stop_at(monkeypatch, -1, interrupt)
    render_dataset(out, **SMALL)
    assert len(saved) == 4
    assert digests(out) == digests(rendered)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_rendered_stays(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        render_dataset(tmp_path / "out", **SMALL)
    monkeypatch.undo()
    saved = stop_at(monkeypatch, -1, interrupt)
    render_dataset(tmp_path / "out", **SMALL)
    assert saved == ["obj_0001_light_0", "obj_0001_light_1"]
    assert digests(tmp_path / "out") == digests(rendered)


def test_two_commands_do_not_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again() -> None:
        with pytest.raises(UserError, match="another command is rendering it"):
            render_dataset(tmp_path / "out", **SMALL)

    stop_at(monkeypatch, 1, again)
    assert render_dataset(tmp_path / "out", **SMALL) == 4


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data: cannot be written .*; free some space, or choose another folder"):
        render_dataset(tmp_path / "file" / "data", **SMALL)


def test_a_folder_that_is_filled_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def fill() -> None:
        out.mkdir()
        (out / "mine").touch()

    stop_at(monkeypatch, 1, fill)
    with pytest.raises(UserError, match="cannot be written"):
        render_dataset(out, **SMALL)
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    saved = stop_at(monkeypatch, -1, interrupt)
    assert render_dataset(out, **SMALL) == 4 and not saved  # nothing was lost


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_objects", 0, "number of objects: 0 is too small; give at least 1"),
        ("num_objects", None, "number of objects: not given"),
        ("lights_per_object", 0, "lights per object: 0 is too small; give at least 1"),
        ("image_size", 8, "image size: 8 is too small; give at least 16"),
        ("samples_per_pixel", 0, "samples per pixel: 0 is too small; give at least 1"),
        ("seed", -1, "seed: -1 is too small; give at least 0"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, argument: str, value: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        render_dataset(tmp_path / "out", **{**SMALL, argument: value})
    assert list(tmp_path.iterdir()) == []


def test_without_mitsuba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(MissingDependencyError, match="pip install mitsuba trimesh"):
        render_dataset(tmp_path / "out", **SMALL)


def test_embedded_set() -> None:
    """Small enough to ship, complete, and with light that the shadows agree with."""
    data = FolderDataset(EMBEDDED, image_size=128)
    metadata = json.loads((EMBEDDED / "metadata.json").read_text())
    assert len(data) == len(metadata) >= 96
    assert len({entry["object"] for entry in metadata.values()}) >= 24
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*")) < 2_500_000
    for name, light in metadata.items():
        shadow = pixels(EMBEDDED / "shadows" / f"{name}.png", "L").astype(float)
        assert shadow.shape == (128, 128)
        assert 0.002 < (shadow / 255).mean() < 0.2, name
        column = (shadow * (np.arange(128) + 0.5)).sum() / shadow.sum() - 64
        sideways = np.sin(np.radians(light["theta"])) * np.cos(np.radians(light["phi"]))
        if abs(sideways) > 0.2:
            assert column * sideways < 0, f"{name}: the shadow falls towards the light"
