"""Scenes with and without their object, by the same rays, and the lists that name what was made."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.settings import load_config
from shadowlab.tasks import open_task, render_samples

pytest.importorskip("mitsuba", reason="rendering is optional: pip install mitsuba trimesh")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("edits")
    (root / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(root / "photos" / f"{name}.png")
    for name in ("one", "two"):
        render_samples(
            "editing",
            root / name,
            SingleProcess(torch.device("cpu")),
            Reporter(active=False),
            num_objects=2,
            lights_per_object=2,
            image_size=32,
            samples_per_pixel=4,
            seed=3,
            textures=root / "photos",
        )
    return root


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_arguments_give_the_same_bytes(rendered: Path) -> None:
    files = sorted(one.relative_to(rendered / "one") for one in (rendered / "one").rglob("*") if one.is_file())
    assert len(files) == 4 * 4 + 24 + 48 + 3
    for file in files:
        assert (rendered / "one" / file).read_bytes() == (rendered / "two" / file).read_bytes(), file


def test_outside_the_mask_nothing_is_changed_by_the_object(rendered: Path) -> None:
    root = rendered / "one"
    for row in rows(root / "object-removal.csv"):
        whole, empty, mask = (levels(root / row[role]) for role in ("input", "target", "mask"))
        changed = (whole != empty).any(axis=2)
        assert changed.sum() > 20 and not changed[mask == 0].any()
        assert 0.03 < (mask > 0).mean() < 0.95
        assert (whole.astype(int) - empty)[changed].min() < -20  # its shadow, too, is gone


def test_lists_are_read_and_gains_are_those_of_the_pictures(rendered: Path) -> None:
    for edit, count in (("object-removal", 4), ("white-balance", 4 + 48), ("paint-to-image", 4 + 24)):
        words = [f"data.path={rendered / 'one' / edit}.csv", "data.image_size=32"]
        data = open_task(load_config(preset=f"{edit}-tiny", assignments=words)).open_data()
        assert len(data) == count
        for i in range(len(data)):
            assert data[i].target.shape == (3, 32, 32)  # gains that are wrong would be refused here
        owners = {data.entry(i).object_id for i in range(len(data))}
        assert owners >= ({"obj_0000", "obj_0001"})
        assert ("photograph a" in owners) == (edit != "object-removal")
