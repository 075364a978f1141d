"""Pictures of any size through a small model: what the result keeps of them, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from shadowlab.console.reporter import Reporter
from shadowlab.errors import UserError
from shadowlab.exporting.diffusers_folder import write_folder
from shadowlab.exporting.run import run_export
from shadowlab.inference import LoadedModel, load_generator
from shadowlab.tasks.editing import EDITS, cast
from tests.inference.made import made_model
from tests.tasks.editing.pictures import disc, scene

SIDE = 32


@pytest.fixture(scope="module", params=list(EDITS))
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return made_model(f"{request.param}-tiny", side=SIDE)


def picture(width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(scene(3, 64)).resize((width, height)))


def mask_for(model: LoadedModel, width: int, height: int) -> np.ndarray | None:
    has_mask = load_generator(model).edit.has_mask
    return np.asarray(Image.fromarray(disc(2, 64)).resize((width, height))) if has_mask else None


@pytest.mark.parametrize("size", [(30, 47), (64, 20), (32, 32)])
def test_the_result_has_the_size_of_the_picture_and_keeps_what_it_says(
    model: LoadedModel, size: tuple[int, int]
) -> None:
    generator, given, mask = load_generator(model), picture(*size), mask_for(model, *size)
    found = generator.generate(given, mask)
    painted = generator.generate(given, mask, keep_input=False)
    assert found.shape == given.shape and found.dtype == np.float32
    found, painted = (np.round(one * 255).astype(np.uint8) for one in (found, painted))
    name = generator.edit.name
    if name == "object-removal":
        inside = mask >= 128  # type: ignore[operator]
        assert np.array_equal(found[~inside], given[~inside]) and np.array_equal(found[inside], painted[inside])
        assert not np.array_equal(painted[~inside], given[~inside])
    elif name == "white-balance":
        values = torch.from_numpy(given / np.float32(255)).permute(2, 0, 1)
        gains = [_gain(found[..., c], given[..., c]) for c in range(3)]
        again = (cast(values, torch.tensor(gains)) * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(again - found).max() <= 2 and not np.array_equal(found, given)
        assert not np.array_equal(painted, found)
    else:
        assert np.array_equal(found, painted)


def _gain(after: np.ndarray, before: np.ndarray) -> float:
    """Of linear light, from the pixels that are not cut off."""
    light = [((one / 255 + 0.055) / 1.055) ** 2.4 for one in (after.astype(float), before.astype(float))]
    kept = (after > 20) & (after < 250)
    return float(np.median(light[0][kept] / light[1][kept])) if kept.any() else 1.0


def test_the_same_seed_gives_the_same_picture_however_it_is_handed_over(model: LoadedModel, tmp_path: Path) -> None:
    generator, given, mask = load_generator(model), picture(40, 24), mask_for(model, 40, 24)
    Image.fromarray(given).save(tmp_path / "a.png")
    first = generator.generate(given, mask, seed=5, keep_input=False)
    assert np.array_equal(first, generator.generate(tmp_path / "a.png", mask, seed=5, keep_input=False))
    assert not np.array_equal(first, generator.generate(given, mask, seed=6, keep_input=False))
    assert not np.array_equal(first, generator.generate(given, mask, seed=5, steps=2, keep_input=False))
    assert not np.array_equal(first, generator.generate(given, mask, seed=5, resolution=48, keep_input=False))


def test_what_cannot_be_edited_is_refused(model: LoadedModel) -> None:
    generator, given, mask = load_generator(model), picture(32, 32), mask_for(model, 32, 32)
    for wrong, told in (
        ({"steps": 0}, "steps = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"resolution": 50}, "resolution = 50"),
    ):
        with pytest.raises(UserError, match=told):
            generator.generate(given, mask, **wrong)
    with pytest.raises(UserError, match="transparent"):
        generator.generate(np.dstack([given, disc(0)]), mask)
    if mask is None:
        with pytest.raises(UserError, match="has none"):
            generator.generate(given, disc(0))
        return
    with pytest.raises(UserError, match="needs one"):
        generator.generate(given)
    with pytest.raises(UserError, match="of the same size"):
        generator.generate(given, disc(0, 64))
    with pytest.raises(UserError, match="empty mask"):
        generator.generate(given, 0 * mask)


def test_an_exported_folder_draws_the_same_without_shadowlab(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowlab.exporting.run.open_model", lambda *_, **__: model)
    done = run_export("made", "diffusers", tmp_path / "out", reporter=Reporter(active=False))
    assert done.difference <= 1e-5
    assert {"editing_pipeline.py", "square_pictures.py"} <= {file.name for file in (tmp_path / "out").iterdir()}
    said = (tmp_path / "out/README.md").read_text()
    assert "`editing_pipeline.py` and `square_pictures.py`" in said and "no UNet" not in said
    assert ('Image.open("mask.png")' in said) == load_generator(model).edit.has_mask


def test_an_exported_pipeline_keeps_what_the_edit_keeps_and_refuses_the_rest(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline is called as a user calls it, with pictures of pillow."""
    assert model.task.exported is not None
    write_folder(model, model.task.exported, tmp_path)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    pipe = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    given, mask = picture(50, 38), mask_for(model, 50, 38)
    images = [Image.fromarray(given)] if mask is None else [Image.fromarray(given), Image.fromarray(mask)]
    found = np.asarray(pipe(*images, generator=torch.Generator().manual_seed(4)).images[0])
    wanted = load_generator(model).generate(given, mask, seed=4)
    assert np.abs(found - np.round(wanted * 255)).max() <= 1 and found.shape == given.shape
    with pytest.raises(ValueError, match="output_type"):
        pipe(*images, output_type="latent")
    with pytest.raises(ValueError, match="num_inference_steps"):
        pipe(*images, num_inference_steps=0)
    if mask is None:
        with pytest.raises(ValueError, match="has no mask"):
            pipe(images[0], Image.fromarray(disc(0)))
        return
    assert np.array_equal(found[mask < 128], given[mask < 128])
    for wrong, said in ((None, "needs a mask"), (np.zeros((38, 50), np.uint8), "empty"), (disc(0), "has the size")):
        with pytest.raises(ValueError, match=said):
            pipe(images[0], wrong)


def test_programs_take_what_the_edit_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_model("object-removal-tiny", side=SIDE)
    monkeypatch.setattr("shadowlab.exporting.run.open_model", lambda *_, **__: model)
    done = run_export("made", "torch", tmp_path / "out", reporter=Reporter(active=False))
    assert done.difference <= 1e-4
    said = json.loads((tmp_path / "out/programs.json").read_text())["programs"]["one_step"]["inputs"]
    assert [one["name"] for one in said] == ["noise", "image", "mask"]
