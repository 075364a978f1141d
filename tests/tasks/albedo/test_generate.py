"""Pictures of any size through a small model: seeds, batches, ensembles, colour spaces; and as diffusers draws them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from shadowlab.console.reporter import Reporter
from shadowlab.errors import StageFailedError, UserError
from shadowlab.exporting.run import run_export
from shadowlab.inference import LoadedModel, load_generator, sampling
from shadowlab.inference.memory import MOST_TOGETHER, Peak, batch_size, drawn_in_batches
from shadowlab.inference.place import ModelPlace
from shadowlab.inference.saved_unet import read_unet
from shadowlab.inference.starting import starting_from
from shadowlab.models import conditions_first, noise_first
from shadowlab.settings import dump_config, load_config
from shadowlab.tasks import open_task
from shadowlab.tasks.albedo import to_linear, to_srgb
from shadowlab.tasks.albedo.exported import _drawn
from shadowlab.training import build_unet

SIDE = 32
CPU = torch.device("cpu")


def model_of(*words: str) -> LoadedModel:
    """The tiny architecture with random weights, none of them 0."""
    config = load_config(preset="albedo-tiny", assignments=[f"data.image_size={SIDE}", "device=cpu", *words])
    task = open_task(config, CPU)
    unet = build_unet(config, task.spec, CPU).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    place = ModelPlace(Path(), Path(), {"raw": Path()}, None, None, "made here")
    return LoadedModel(config, task, unet.requires_grad_(False), "raw", None, "made here", place)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return model_of()


@pytest.mark.parametrize("size", [(30, 47), (64, 20), (32, 32)])
def test_the_albedo_has_the_size_of_the_picture(model: LoadedModel, size: tuple[int, int]) -> None:
    found = load_generator(model).generate(_drawn(*size))
    assert found.shape == (*size, 3) and found.dtype == np.float32 and 0 <= found.min() < found.max() <= 1


def test_the_same_seed_gives_the_same_albedo_and_members_are_singles(model: LoadedModel) -> None:
    generator, picture = load_generator(model), _drawn(24, 40)
    singles = np.stack([generator.generate(picture, seed=seed) for seed in (5, 6, 7)])
    assert np.array_equal(singles[0], generator.generate(picture, seed=5)) and not np.array_equal(*singles[:2])
    middle = generator.estimate(picture, ensemble=3, seed=5, resolution=40)
    own = np.stack([generator.generate(picture, seed=seed, resolution=40) for seed in (5, 6, 7)])
    assert np.abs(middle.albedo - np.median(own, axis=0)).max() < 1e-5
    assert middle.uncertainty is not None and middle.uncertainty.shape == middle.albedo.shape
    mean = generator.estimate(picture, ensemble=3, reduction="mean", seed=5, resolution=40)
    assert np.abs(mean.albedo - own.mean(axis=0)).max() < 1e-5
    assert generator.estimate(picture).uncertainty is None


def test_a_picture_is_the_same_whatever_it_is_handed_over_as(model: LoadedModel, tmp_path: Path) -> None:
    generator, picture = load_generator(model), _drawn(24, 32)
    Image.fromarray(picture).save(tmp_path / "beauty.png")
    found = [generator.generate(one) for one in (picture, Image.fromarray(picture), tmp_path / "beauty.png")]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_the_colour_space_of_a_picture_is_declared_and_comes_back(model: LoadedModel) -> None:
    """In linear light the same picture gives the same albedo, in linear light."""
    generator, picture = load_generator(model), _drawn(32, 32) / np.float32(255)
    linear = to_linear(torch.from_numpy(picture)).numpy()
    from_srgb, from_linear = generator.generate(picture), generator.generate(linear, space="linear")
    assert np.abs(to_srgb(torch.from_numpy(from_linear)).numpy() - from_srgb).max() < 0.05  # 8 bits of linear light
    assert np.abs(from_linear - from_srgb).max() > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": 0}, "ensemble = 0 is no whole number of 1 to 1000"),
        ({"steps": 1001}, "steps = 1001"),
        ({"seed": -1}, "seed = -1"),
        ({"resolution": 20}, "no multiple of 8"),
        ({"reduction": "mode"}, "median"),
        ({"space": "rec709"}, "srgb or linear"),
        ({"ensemble": True}, "ensemble = True"),
    ],
)
def test_what_is_out_of_range_is_named(model: LoadedModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_generator(model).generate(_drawn(16, 16), **options)


def test_a_picture_that_is_too_narrow_is_refused(model: LoadedModel) -> None:
    with pytest.raises(UserError, match="too narrow"):
        load_generator(model).generate(_drawn(8, 800))


# Batches


def test_batches_hold_what_fits_and_give_all_samples_in_their_order() -> None:
    asked: list[tuple[int, int]] = []

    def draw(first: int, end: int) -> torch.Tensor:
        asked.append((first, end))
        return torch.arange(first, end).float()[:, None]

    assert drawn_in_batches(draw, 9, CPU).flatten().tolist() == list(range(9))
    assert asked[0] == (0, 1) and asked[1:] == [(1, 9)]  # one is measured, all others fit


def test_a_batch_that_is_refused_is_halved_and_a_single_one_is_an_error() -> None:
    asked: list[int] = []

    def draw(first: int, end: int) -> torch.Tensor:
        asked.append(end - first)
        if end - first > 2:
            raise torch.OutOfMemoryError
        return torch.arange(first, end).float()[:, None]

    assert drawn_in_batches(draw, 8, CPU).flatten().tolist() == list(range(8))
    assert max(asked[asked.index(2) :]) <= 2

    def never(first: int, end: int) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        drawn_in_batches(never, 3, CPU)


def test_the_size_of_a_batch_follows_from_memory() -> None:
    assert batch_size(100, 1000) == 5 and batch_size(100, 50) == 1
    assert batch_size(1, 10**9) == MOST_TOGETHER and batch_size(0, 10) == 5


def test_the_peak_counts_what_lives_at_once() -> None:
    with Peak() as peak:
        for _ in range(4):
            one = torch.ones(1000)
            other = one * 2
            del one, other
    assert 8000 <= peak.num_bytes < 12000


def test_singles_are_not_measured(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "drawn_in_batches", lambda draw, count, device: draw(0, count))
    assert load_generator(model).generate(_drawn(16, 16)).shape == (16, 16, 3)


# As a pipeline of diffusers


def exported(model: LoadedModel, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("shadowlab.exporting.run.open_model", lambda *_, **__: model)
    return run_export("made", "diffusers", out, reporter=Reporter(active=False))


@pytest.mark.parametrize("words", [(), ("task_options.model.objective=epsilon",)], ids=["v", "epsilon"])
def test_diffusers_own_marigold_pipeline_draws_the_same(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    model = model_of(*words)
    written = exported(model, tmp_path / "out", monkeypatch)
    assert written.difference <= (1e-3 if words else 1e-4) and not list((tmp_path / "out").rglob("*.py"))
    from diffusers import MarigoldIntrinsicsPipeline

    pipe = MarigoldIntrinsicsPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    picture = _drawn(40, 24)
    found = pipe(Image.fromarray(picture), generator=torch.Generator().manual_seed(3))
    assert np.abs(found.prediction[0] - load_generator(model).generate(picture, seed=3)).max() <= (
        1e-3 if words else 1e-4
    )
    assert torch.allclose(pipe.empty_text_embedding[0], model.task.prompt, atol=1e-5)  # type: ignore[attr-defined]
    assert pipe.target_properties["albedo"]["prediction_space"] == "srgb"
    shown = pipe.image_processor.visualize_intrinsics(found.prediction, pipe.target_properties)
    assert shown[0]["albedo"].size == (24, 40)


def test_an_export_whose_inputs_are_in_the_wrong_order_is_found(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(
        "shadowlab.tasks.albedo.exported.AlbedoExported.unet_weights", lambda self, weights: dict(weights)
    )
    with pytest.raises(StageFailedError, match="differs from the original"):
        exported(model, tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out").exists()


def test_inputs_of_an_exported_unet_come_back_in_our_order(tmp_path: Path) -> None:
    model = model_of()
    weights = model.unet.state_dict()
    turned = conditions_first(weights)
    assert (
        not torch.equal(turned["conv_in.weight"], weights["conv_in.weight"])
        and model.task.spec.exports_conditions_first
    )
    model.unet.save_pretrained(tmp_path)
    save_file(turned, tmp_path / "diffusion_pytorch_model.safetensors")
    read = read_unet(tmp_path, model.task.spec, inside=tmp_path, is_exported=True)
    assert torch.equal(read.state_dict()["conv_in.weight"], weights["conv_in.weight"])
    uneven = {"conv_in.weight": torch.randn(8, 12, 3, 3)}
    assert torch.equal(noise_first(conditions_first(uneven))["conv_in.weight"], uneven["conv_in.weight"])


def test_an_exported_folder_is_opened_as_the_model_that_it_was(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its UNet has the picture before the noise, as Marigold's pipeline wants it."""
    pytest.importorskip("transformers")
    exported(model, tmp_path / "out", monkeypatch)
    picture = _drawn(SIDE, SIDE)
    again = load_generator(tmp_path / "out").generate(picture, seed=3)
    assert np.array_equal(again, load_generator(model).generate(picture, seed=3))
    config = model.config.model_copy(
        update={"model": model.config.model.model_copy(update={"weights": str(tmp_path / "out")})}
    )
    with pytest.raises(UserError, match="give the run that it was made of"):
        starting_from(config)


def test_a_rectified_flow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="draws by DDIM"):
        exported(model_of("task_options.model.objective=flow"), tmp_path / "out", monkeypatch)


def test_the_configuration_goes_along(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    exported(model, tmp_path / "out", monkeypatch)
    assert (tmp_path / "out" / "shadowlab.yaml").read_text() == dump_config(model.config)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "MarigoldIntrinsicsPipeline" in card and "trust_remote_code" not in card
