"""Objects in pictures of any size: composited to the bit, seeds, guidance; and as an exported folder draws them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.console.reporter import Reporter
from shadowlab.errors import UserError
from shadowlab.exporting.run import run_export
from shadowlab.inference import LoadedModel, load_generator
from shadowlab.inference.place import ModelPlace
from shadowlab.settings import load_config
from shadowlab.tasks import open_task
from shadowlab.tasks.insertion import InsertionGenerator
from shadowlab.training import build_unet
from tests.tasks.insertion.rows import object_of, row_of

SIDE = 32
CPU = torch.device("cpu")


def model_of(*words: str) -> LoadedModel:
    """The tiny architecture with random weights."""
    own = [f"data.image_size={SIDE}", "device=cpu", "model.weights=random", *words]
    config = load_config(preset="insertion-tiny", assignments=own)
    task = open_task(config, CPU)
    unet = build_unet(config, task.spec, CPU).eval()
    place = ModelPlace(Path(), Path(), {"raw": Path()}, None, None, "made here")
    return LoadedModel(config, task, unet.requires_grad_(False), "raw", None, "made here", place)


@pytest.fixture(scope="module")
def generator() -> InsertionGenerator:
    found: InsertionGenerator = load_generator(model_of())
    return found


@pytest.mark.parametrize("size", [(40, 61), (90, 33), (32, 32)])
def test_outside_the_mask_every_level_is_the_targets(generator: InsertionGenerator, size: tuple[int, int]) -> None:
    target, mask = row_of(1, 1, *size)
    made = generator.generate(target, object_of(1), mask)
    assert made.shape == (*size, 3) and made.dtype == np.float32
    levels, inside = np.round(made * 255).astype(np.uint8), mask >= 128
    assert np.array_equal(levels[~inside], target[~inside]) and not np.array_equal(levels[inside], target[inside])
    other = target.copy()
    other[inside] = 255 - other[inside]  # what lies inside is no part of the question
    border = np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.BOX))
    assert border.any()
    again = generator.generate(other, object_of(1), mask)
    assert np.array_equal(again[~inside], made[~inside])


def test_a_square_target_hides_what_lies_inside_to_the_bit(generator: InsertionGenerator) -> None:
    target, mask = row_of(1, 1, SIDE, SIDE)
    other = np.where(mask[..., None] >= 128, 255 - target, target)
    one, two = (generator.generate(picture, object_of(1), mask) for picture in (target, other))
    assert np.array_equal(one, two)


def test_the_same_seed_gives_the_same_picture_and_object_and_guidance_count(generator: InsertionGenerator) -> None:
    target, mask = row_of(2, 0, 48, 48)
    one = generator.generate(target, object_of(2), mask, seed=3)
    assert np.array_equal(one, generator.generate(target, object_of(2), mask, seed=3))
    assert not np.array_equal(one, generator.generate(target, object_of(2), mask, seed=4))
    assert not np.array_equal(one, generator.generate(target, object_of(3), mask, seed=3))
    guided = generator.generate(target, object_of(2), mask, seed=3, guidance=3.0)
    without = generator.generate(target, object_of(2), mask, seed=3, guidance=0.0)
    assert not np.array_equal(one, guided) and not np.array_equal(one, without)
    blind = generator.generate(target, object_of(3), mask, seed=3, guidance=0.0)
    assert np.abs(without - blind).max() < 1e-5  # at scale 0 the object is not seen


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"mask": np.zeros((48, 48), np.uint8)}, "empty"),
        ({"mask": np.full((48, 40), 255, np.uint8)}, "40 x 48, and the target 48 x 48"),
        ({"mask": Image.new("RGB", (48, 48), "white")}, "mode RGB"),
        ({"steps": 0}, "steps = 0"),
        ({"guidance": -1.0}, "guidance = -1"),
        ({"resolution": 33}, "no multiple of 8"),
        ({"seed": -1}, "seed = -1"),
        ({"target": "nowhere.png"}, "nowhere.png"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(generator: InsertionGenerator, change: Any, wanted: str) -> None:
    target, mask = row_of(2, 0, 48, 48)
    given: dict[str, Any] = {"target": target, "object_image": object_of(2), "mask": mask, **change}
    with pytest.raises(UserError, match=wanted):
        generator.generate(**given)


@pytest.mark.parametrize("words", [(), ("task_options.model.objective=epsilon", "task_options.model.beside=height")])
def test_an_exported_folder_draws_the_same_without_shadowlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    model = model_of(*words)
    monkeypatch.setattr("shadowlab.exporting.run.open_model", lambda *_, **__: model)
    run_export("made", "diffusers", tmp_path / "out", reporter=Reporter(active=False))
    assert (tmp_path / "out/insertion_pipeline.py").is_file()
    assert not (tmp_path / "out/unet/diffusers.py").exists()


def test_programs_take_the_canvas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("task_options.model.beside=height")
    monkeypatch.setattr("shadowlab.exporting.run.open_model", lambda *_, **__: model)
    run_export("made", "torch", tmp_path / "out", reporter=Reporter(active=False))
    said = json.loads((tmp_path / "out/programs.json").read_text())
    noise = said["programs"]["one_step"]["inputs"][0]
    assert noise["shape"] == "(B, 4, 2 H / 8, W / 8)"
