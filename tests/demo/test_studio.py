"""What the demo shows: the same as generate, encoded once, and bounded in what it keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.demo.studio import LIVE_SIDE, Look, Studio
from shadowlab.errors import UserError
from shadowlab.inference import load_generator
from shadowlab.tasks.shadow import ShadowGenerator, map_levels

LIGHT = (30.0, 90.0, 4.0)


@pytest.fixture(scope="module")
def generator() -> ShadowGenerator:
    found: ShadowGenerator = load_generator("small", device="cpu")
    return found


def object_file(folder: Path, height: int, width: int, name: str = "object.png") -> str:
    picture = np.zeros((height, width, 4), np.uint8)
    picture[height // 4 : height // 2, width // 3 : width // 2] = (180, 90, 40, 255)
    Image.fromarray(picture).save(folder / name)
    return str(folder / name)


def pixels(file: Path) -> np.ndarray[Any, Any]:
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_a_shadow_is_that_of_generate(generator: ShadowGenerator, tmp_path: Path) -> None:
    studio, file = Studio(generator), object_file(tmp_path, 120, 200)
    shadow, laid = studio.live(studio.subject(file, None), LIGHT, Look(), 1, 3)
    assert np.array_equal(shadow, map_levels(generator.generate(file, None, 30.0, 90.0, 4.0, seed=3)))
    assert laid.shape == (120, 200, 3)


def test_a_large_picture_is_shown_small_and_written_whole(generator: ShadowGenerator, tmp_path: Path) -> None:
    studio, file = Studio(generator), object_file(tmp_path, 900, 1500)
    subject = studio.subject(file, None)
    shadow, laid = studio.live(subject, LIGHT, Look(), 1, 0)
    assert max(shadow.shape) == LIVE_SIDE and laid.shape[:2] == shadow.shape
    written = studio.files(subject, LIGHT, Look(), 1, 0, tmp_path)
    whole, laid = (pixels(one) for one in written)
    assert laid.shape == (900, 1500, 3)
    assert np.array_equal(whole, map_levels(generator.generate(file, None, 30.0, 90.0, 4.0)))


def test_an_object_is_encoded_once_and_the_oldest_is_forgotten(
    generator: ShadowGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio, encoded = Studio(generator), []
    prepare = generator.prepare

    def counted(*given: Any) -> Any:
        encoded.append(given)
        return prepare(*given)

    monkeypatch.setattr(generator, "prepare", counted)
    files = [object_file(tmp_path, 40 + k, 40, f"{k}.png") for k in range(10)]
    for _ in range(3):
        studio.subject(files[0], None)
    assert len(encoded) == 1
    for file in files:
        studio.subject(file, None)
    assert len(encoded) == 10 and len(studio._subjects) == 8
    studio.subject(files[0], None)
    assert len(encoded) == 11


def test_intensity_zero_is_the_background_and_the_object(generator: ShadowGenerator, tmp_path: Path) -> None:
    studio, file = Studio(generator), object_file(tmp_path, 64, 64)
    _, laid = studio.live(studio.subject(file, None), LIGHT, Look("#336699", 0.0), 1, 0)
    assert laid[0, 0].tolist() == [0x33, 0x66, 0x99] and laid[20, 25].tolist() == [180, 90, 40]


def test_latents_are_kept_and_wrong_values_are_named(generator: ShadowGenerator, tmp_path: Path) -> None:
    studio, file = Studio(generator), object_file(tmp_path, 64, 64)
    subject = studio.subject(file, None)
    assert torch.equal(studio.subject(file, None).prepared.latents, subject.prepared.latents)
    with pytest.raises(UserError, match="theta"):
        studio.live(subject, (60.0, 0.0, 4.0), Look(), 1, 0)
    with pytest.raises(UserError, match="intensity"):
        studio.live(subject, LIGHT, Look(intensity=3.0), 1, 0)
    with pytest.raises(UserError, match="cannot be read"):
        studio.subject(str(tmp_path / "nothing.png"), None)
