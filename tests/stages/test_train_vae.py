"""Training the small VAE: what it writes, what it refuses, what it never mixes."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from diagnostics import NonFiniteError
from shadowlab.data.split import split_by_object
from shadowlab.errors import UserError
from shadowlab.models.vae import EMBEDDED_FOLDER, load_vae
from shadowlab.stages.train_vae import latents, learner, pictures
from shadowlab.stages.train_vae import loop as module
from shadowlab.stages.train_vae import shadows as stock
from shadowlab.stages.train_vae.learner import SMALL_CONFIG
from shadowlab.stages.train_vae.loop import VaeReport, train_vae
from shadowlab.stages.train_vae.quality import measure_vae
from shadowlab.stages.train_vae.shadows import ShadowStock
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.training import learning_rate

SIZE = 32
NUM_OBJECTS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs and their soft shadows, two lights for each of four objects."""
    root = tmp_path_factory.mktemp("discs")
    for name in ("objects", "masks", "shadows"):
        (root / name).mkdir()
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    metadata = {}
    for disc in range(NUM_OBJECTS):
        mask = np.hypot(rows - 14, columns - 10 - 2 * disc) < 5 + disc
        for light in range(2):
            name = f"disc{disc}_{light}"
            distance = np.hypot(rows - 22, columns - 8 - 2 * disc - 4 * light)
            shadow = np.clip(1.5 - distance / (5 + disc), 0.0, 1.0) * ~mask
            picture = np.where(mask[..., None], [40 * disc + 60, 90, 200], 128)
            Image.fromarray(picture.astype(np.uint8)).save(root / "objects" / f"{name}.png")
            Image.fromarray((mask * 255).astype(np.uint8)).save(root / "masks" / f"{name}.png")
            Image.fromarray((shadow * 255).astype(np.uint8)).save(root / "shadows" / f"{name}.png")
            metadata[name] = {"theta": 20.0, "phi": 90.0 * light, "size": 4.0, "object": f"disc{disc}"}
    (root / "metadata.json").write_text(json.dumps(metadata))
    return root


def train(data: Path, out: Path, **changes: Any) -> VaeReport:
    settings: dict[str, Any] = {"steps": 12, "seed": 0, "batch_size": 4, "learning_rate": 2e-3, "image_size": SIZE}
    return train_vae(data=data, out=out, stock=ShadowStock(), **{**settings, **changes})


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VaeReport, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("trained") / "vae"
    logs: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW_STEPS", 0.0)  # losses of windows and of whole pictures do not compare
        return out, train(data, out, steps=40, on_log=logs.append), logs


Trained = tuple[Path, VaeReport, list[dict[str, Any]]]


def test_loss_falls(trained: Trained) -> None:
    _, report, logs = trained
    assert [log["step"] for log in logs] == list(range(40))
    assert report.first_loss == pytest.approx(sum(log["loss"] for log in logs[:4]) / 4)
    assert report.last_loss < 0.8 * report.first_loss


def test_writes_a_loadable_folder_and_nothing_else(trained: Trained) -> None:
    out, report, _ = trained
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "report.json",
    ]
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # no temporary folder stays
    vae = load_vae(str(out))
    assert vae.num_parameters == report.num_parameters < 524_288
    assert report.file_bytes == (out / "diffusion_pytorch_model.safetensors").stat().st_size < 2 * 1024 * 1024
    assert json.loads((out / "report.json").read_text()) == asdict(report)


def test_scaling_gives_training_shadows_unit_latents(trained: Trained, data: Path) -> None:
    out, report, _ = trained
    vae, dataset = load_vae(str(out)), open_dataset(data, SIZE)
    assert vae.scaling_factor == report.scaling_factor == pytest.approx(1 / report.target_latent_std)
    shadows = [dataset[i].shadow for i, name in enumerate(dataset.object_ids) if name not in report.held_out_objects]
    torch.testing.assert_close(vae.encode_grey(torch.stack(shadows)).std(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_held_out_objects_are_never_read_in_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    original = stock.training_pictures

    def spy(read: Any, *arguments: Any) -> Any:
        def noted(i: int) -> Any:
            sample = read(i)
            drawn.append(sample.object_id)
            return sample

        return original(noted, *arguments)

    monkeypatch.setattr(stock, "training_pictures", spy)
    report = train(data, tmp_path / "vae", steps=4)
    dataset = open_dataset(data, SIZE)
    split = split_by_object(dataset.object_ids, module.VALIDATION_FRACTION, 0)
    assert report.held_out_objects == sorted({dataset.object_ids[i] for i in split.validation})
    assert len(set(drawn)) == report.num_train_objects == NUM_OBJECTS - len(report.held_out_objects)
    assert not set(drawn) & set(report.held_out_objects)
    assert report.held_out.num_samples == len(split.validation)


def test_same_seed_same_weights(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    train(data, tmp_path / "a", steps=2)
    torch.manual_seed(2)  # the global random state has no say
    train(data, tmp_path / "b", steps=2)
    train(data, tmp_path / "c", steps=2, seed=1)
    weights = [load_vae(str(tmp_path / name)).autoencoder.decoder.conv_out.weight for name in "abc"]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_refuses_to_overwrite(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "vae"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="already exists and is not an empty folder; give another --out"):
        train(data, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_takes_an_empty_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    train(data, tmp_path / "vae", steps=1)
    load_vae(str(tmp_path / "vae"))


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"learning_rate": math.nan}, {"learning_rate": 1e300}],
)
def test_numbers_out_of_range(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected steps >= 1, batch size >= 2, a positive learning rate"):
        train(data, tmp_path / "vae", **changes)


def test_a_bad_loss_is_explained_before_the_optimizer_moves(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original_loss, original_build = stock.loss_terms, module.build_learner

    def losses(model: Any, shadows: Any, objects: Any, step: int, seed: int) -> Any:
        terms = original_loss(model, shadows, objects, step, seed)
        return {**terms, "loss": terms["loss"] / 0.0} if step == 2 else terms

    def built(*arguments: Any) -> Any:
        learner = original_build(*arguments)
        learner.optimizer.register_step_post_hook(lambda *_: seen.append(state_of(learner)))
        seen.append(learner)
        return learner

    def state_of(learner: Any) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in learner.parameters().values()]

    monkeypatch.setattr(stock, "loss_terms", losses)
    monkeypatch.setattr(module, "build_learner", built)
    with pytest.raises(NonFiniteError) as caught:
        train(data, tmp_path / "vae")
    verdict = caught.value.verdict
    assert (verdict.step, verdict.phase, verdict.op, verdict.exception) == (2, "loss", "div", "divide_by_zero")
    learner, _, second = seen
    assert all(map(torch.equal, state_of(learner), second))
    assert list(tmp_path.iterdir()) == []


def test_a_bad_picture_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = stock.training_pictures

    def spoiled(read: Any, indices: Any, step: int, *arguments: Any) -> Any:
        shadows, objects = original(read, indices, step, *arguments)
        shadows[1, 0, 3, 3] = math.nan
        return shadows, objects

    monkeypatch.setattr(stock, "training_pictures", spoiled)
    with pytest.raises(NonFiniteError) as caught:
        train(data, tmp_path / "vae")
    verdict = caught.value.verdict
    assert (verdict.step, verdict.phase, verdict.samples) == (0, "data", (1,))


def test_an_interrupted_write_leaves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(stock, "measure_vae", broken)
    with pytest.raises(OSError, match="No space"):
        train(data, tmp_path / "vae", steps=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["file/vae", "x" * 300, "link"])
def test_a_place_that_cannot_be_written_is_reported_before_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("link")  # a loop
    monkeypatch.setattr(stock, "training_pictures", lambda *_: pytest.fail("training began"))
    with pytest.raises(UserError, match=r"--out .*: cannot be written|already exists") as caught:
        train(data, tmp_path / out)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("victim", ["save_pretrained", "replace_text", "replace"])
def test_a_disk_that_fills_up_in_the_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    owner: Any = {"save_pretrained": AutoencoderKL, "replace_text": module, "replace": module.os}[victim]
    monkeypatch.setattr(owner, victim, full)
    with pytest.raises(UserError, match=r"--out .*No space left on device.*free the disk"):
        train(data, tmp_path / "vae", steps=1)
    assert list(tmp_path.iterdir()) == []


def test_augmentation_keeps_the_background_and_the_range(data: Path) -> None:
    dataset = open_dataset(data, SIZE)
    for step in range(8):
        side = SIZE // 2 if step % 2 else SIZE
        shadows, objects = pictures.training_pictures(dataset.__getitem__, range(len(dataset)), step, 8, side, seed=0)
        assert shadows.shape == (6, 1, side, side) and objects.shape == (2, 3, side, side)
        assert shadows.flatten(1).amax(dim=1).min() > 0.0  # every window holds some shadow
        assert 0.0 <= shadows.min() and shadows.max() <= 1.0
        assert objects.abs().max() <= 1.0
        assert (objects == 0.0).float().mean() > 0.2
    again = pictures.training_pictures(dataset.__getitem__, range(len(dataset)), 7, 8, SIZE // 2, seed=0)
    assert torch.equal(again[0], shadows) and torch.equal(again[1], objects)


def test_balancing_the_latents_changes_no_reconstruction() -> None:
    torch.manual_seed(0)
    model: Any = AutoencoderKL(**SMALL_CONFIG).eval()
    drawn = torch.rand(6, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        before = model.encode(drawn).latent_dist
        decoded = model.decode(before.mean).sample
        latents.balance(model, before.mean)
        after = model.encode(drawn).latent_dist
        torch.testing.assert_close(model.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)
    deviations = after.mean.std(dim=(0, 2, 3))
    torch.testing.assert_close(deviations, deviations.mean().expand(4))
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    relative = before.std / before.mean.std(dim=(0, 2, 3), keepdim=True)  # the posterior keeps its relative width
    torch.testing.assert_close(after.std / deviations.view(1, -1, 1, 1), relative)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    asked = learner.Asked(100, 0, 4, 2e-3, SIZE)
    config = learner.build_learner(asked, torch.device("cpu"), lambda model: None).learning_rate_config
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.2 * 2e-3) and max(rates) == rates[5] == 2e-3
    assert all(later < earlier for earlier, later in zip(rates[5:], rates[6:], strict=False))
    assert rates[100] == pytest.approx(0.0)


def test_shipped_report_is_of_the_shipped_weights_and_not_of_the_shipped_renders() -> None:
    report = json.loads((EMBEDDED_FOLDER / "report.json").read_text())
    vae = load_vae("embedded")
    assert report["num_parameters"] == vae.num_parameters
    assert report["scaling_factor"] == vae.scaling_factor
    dataset = open_dataset("embedded", 128)
    assert report["fingerprint"] != dataset.fingerprint()
    quality = measure_vae(vae, dataset, range(4))
    assert quality.shadow_psnr_db > 30.0
