"""A model is found wherever a user names it, and a file that is not what it claims to be is one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shadowlab.errors import UserError
from shadowlab.inference import find_model, load_generator, open_model
from shadowlab.models.vae import load_vae
from tests.inference.made import disk, exported_folder, make_run, picture

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def run(stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_run(stage_folder, Path("runs"))


def test_a_run_by_folder_name_or_latest_its_checkpoint_and_its_export_are_one_model(
    run: Path, stage_folder: dict[str, Path], tmp_path: Path
) -> None:
    newer = make_run(stage_folder, Path("runs"), "second", 7)
    os.utime(run / "config.yaml", (1, 1))
    os.utime(run / "environment.json", (1, 1))
    assert find_model("latest").step == 7
    assert find_model("second").folder == newer / "checkpoints" / "step-00000007"
    exported = exported_folder(run, tmp_path / "exported")
    places = ("first", str(run), run.absolute(), run / "checkpoints" / "step-00000002", exported)
    models = [open_model(place, device="cpu") for place in places]
    assert [model.weights for model in models] == ["ema"] * 4 + ["exported"]
    assert [model.step for model in models] == [2] * 4 + [None]
    first = models[0].unet.state_dict()
    for model in models[1:]:
        assert all(torch.equal(tensor, first[name]) for name, tensor in model.unet.state_dict().items())
    raw = open_model(run, device="cpu", weights="raw")
    assert raw.text == "runs/first, step 2, raw weights"
    assert not torch.equal(raw.unet.conv_in.weight, models[0].unet.conv_in.weight)


def test_the_newest_complete_checkpoint_is_taken_and_a_run_without_an_average_has_raw_weights(
    run: Path, stage_folder: dict[str, Path]
) -> None:
    half = run / "checkpoints" / "step-00000009"
    half.mkdir()
    (half / "unet").mkdir()
    assert find_model(run).step == 2
    with pytest.raises(UserError, match=r"step-00000009: not a complete checkpoint"):
        find_model(half)
    alone = make_run(stage_folder, Path("runs"), "alone", 1, "train.ema_decay=null")
    place = find_model(alone)
    assert "ema" in place.unets  # the trainee of these tests keeps one
    without = type(place)(**{**vars(place), "unets": {"raw": place.unets["raw"]}})
    assert open_model(without, device="cpu").weights == "raw"


def test_half_weights_become_float32(run: Path, tmp_path: Path) -> None:
    exported = exported_folder(run, tmp_path / "exported")
    file = exported / "unet" / WEIGHTS
    halves = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(halves, file)
    unet = open_model(exported, device="cpu").unet
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert all(torch.equal(p, halves[name].float()) for name, p in unet.named_parameters())
    assert not any(p.requires_grad for p in unet.parameters()) and not unet.training


def _config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def act(exported: Path) -> None:
        file = exported / "unet" / "config.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return act


def _weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def act(exported: Path) -> None:
        file = exported / "unet" / WEIGHTS
        content = load_file(file)
        change(content)
        save_file(content, file)

    return act


def _link_out(exported: Path) -> None:
    file = exported / "unet" / WEIGHTS
    file.rename(exported.parent / "elsewhere")
    file.symlink_to(exported.parent / "elsewhere")


def _pipe(exported: Path) -> None:
    (exported / "unet" / WEIGHTS).unlink()
    os.mkfifo(exported / "unet" / WEIGHTS)


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "channels": (_config(lambda c: c.update(block_out_channels=[2**40, 2**40])), "block_out_channels is beyond"),
    "layers": (_config(lambda c: c.update(layers_per_block=10_000_000)), "layers_per_block is beyond"),
    "depth": (_config(lambda c: c.update(transformer_layers_per_block=[[9999]])), "transformer_layers_per_block is"),
    "blocks": (_config(lambda c: c.update(down_block_types=["os.system"])), "describes no UNet"),
    "other task": (_config(lambda c: c.update(out_channels=3)), "9 channels in and 3 out"),
    "kind": (lambda e: (e / "unet" / "config.json").write_text("[1]"), "expected a JSON object"),
    "no json": (lambda e: (e / "unet" / "config.json").write_text("{"), "not readable JSON"),
    "no config": (lambda e: (e / "unet" / "config.json").unlink(), "config.json: cannot be read"),
    "missing": (_weights(lambda t: t.pop("conv_in.bias")), "conv_in.bias is in config.json, not in the file"),
    "unknown": (_weights(lambda t: t.update({"a\x1b[2J": torch.zeros(1)})), r"a\\x1b\[2J is in the file"),
    "shape": (_weights(lambda t: t.update({"conv_in.bias": torch.zeros(3)})), r"conv_in.bias is \(3,\), the model"),
    "dtype": (_weights(lambda t: t.update({"conv_in.bias": t["conv_in.bias"].int()})), "conv_in.bias is I32"),
    "nan": (_weights(lambda t: t["conv_in.bias"].fill_(float("nan"))), "conv_in.bias holds values that are not finite"),
    "pickle": (lambda e: (e / "unet" / WEIGHTS).write_bytes(b"\x80\x04."), "truncated or no safetensors"),
    "truncated": (lambda e: os.truncate(e / "unet" / WEIGHTS, 1000), "truncated or no safetensors"),
    "link out": (_link_out, "a link that leads out"),
    "pipe": (_pipe, "a pipe, not a file"),
    "task": (lambda e: (e / "shadowlab.yaml").write_text("task: nonsense"), "there is no task 'nonsense'"),
    "yaml": (lambda e: (e / "shadowlab.yaml").write_text("base: [sdxl]"), "`base` is not followed"),
    "hub": (lambda e: (e / "shadowlab.yaml").write_text("model: {vae: nobody/has-this}"), "VAE 'nobody/has-this'"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_strangers_folder_is_one_line(run: Path, tmp_path: Path, attack: str, alarm: None) -> None:
    exported = exported_folder(run, tmp_path / "exported")
    act, message = ATTACKS[attack]
    act(exported)
    with pytest.raises(UserError, match=message) as caught:
        open_model(exported, device="cpu")
    assert "\n" not in str(caught.value)


def test_nothing_is_downloaded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(*_: object, **options: object) -> None:
        asked.append(options["local_files_only"])
        raise OSError("not in the cache")

    for way in ("load_config", "from_pretrained"):
        monkeypatch.setattr(f"shadowlab.models.vae.AutoencoderKL.{way}", fetch)
    exported = exported_folder(run, tmp_path / "exported")
    (exported / "shadowlab.yaml").write_text("model: {vae: nobody/has-this}\ndata: {image_size: 32}\n")
    for act in (lambda: open_model(exported, device="cpu"), lambda: load_vae("nobody/has-this")):
        with pytest.raises(UserError, match="nobody/has-this"):
            act()
    assert asked == [True, False]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", r"nowhere: no such model, here or in runs/; give a run with a checkpoint"),
        ("runs", r"runs: no model; give a run"),
        ("bare", r"bare: a run without a complete checkpoint"),
        ("pipeline", r"pipeline: a pipeline of diffusers without shadowlab\.yaml"),
        ("copy/checkpoints/step-00000002", r"a checkpoint without its run: copy/config\.yaml is missing"),
        ("x" * 5000, "cannot be looked at"),
        ("", "no model"),
    ],
)
def test_a_wrong_place_says_what_is_accepted(run: Path, place: str, message: str) -> None:
    Path("bare/checkpoints").mkdir(parents=True)
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").write_text("{}")
    Path("copy/checkpoints").mkdir(parents=True)
    os.symlink(run.absolute() / "checkpoints", "linked")
    os.rename(run / "checkpoints" / "step-00000002", "copy/checkpoints/step-00000002")
    with pytest.raises(UserError, match=message):
        find_model(place)


def test_one_maps_numbers_do_not_depend_on_the_pictures_before_it(run: Path) -> None:
    generator = load_generator(run, device="cpu")
    first = generator.generate(picture(40, 60), disk(40, 60), 30, 90, 4, seed=3)
    generator.generate(picture(64, 64, seed=5), disk(64, 64), 10, 10, 2, steps=2, seed=1)
    again = load_generator(run, device="cpu").generate(picture(40, 60), disk(40, 60), 30, 90, 4, seed=3)
    assert first.shape == (40, 60) and first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, generator.generate(picture(40, 60), disk(40, 60), 30, 90, 4, seed=4))
