"""Pictures of any size through a small model: what the result keeps of them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.errors import UserError
from shadowlab.inference import LoadedModel, load_generator
from shadowlab.inference.place import ModelPlace
from shadowlab.settings import load_config
from shadowlab.tasks import open_task
from shadowlab.tasks.editing import EDITS, cast
from shadowlab.training import build_unet
from tests.tasks.editing.pictures import disc, scene

SIDE = 32
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=list(EDITS))
def model(request: pytest.FixtureRequest) -> LoadedModel:
    """The tiny architecture with random weights, none of them 0."""
    words = [f"data.image_size={SIDE}", "device=cpu"]
    config = load_config(preset=f"{request.param}-tiny", assignments=words)
    task = open_task(config, CPU)
    unet = build_unet(config, task.spec, CPU).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    place = ModelPlace(Path(), Path(), {"raw": Path()}, None, None, "made here")
    return LoadedModel(config, task, unet.requires_grad_(False), "raw", None, "made here", place)


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
    assert found.shape == given.shape and found.dtype == np.uint8
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
