"""`--weights RUN`: which runs can start another, what the new one keeps of them, and what is refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli.main import app
from diagnostics.records import read_records
from shadowlab.distributed import SingleProcess
from shadowlab.errors import UserError
from shadowlab.inference import open_model, starting_from
from shadowlab.runs import RunFolder, start_of
from shadowlab.settings import Config, load_config
from shadowlab.tasks import open_task
from shadowlab.training import build_trainee, build_unet, save_checkpoint

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"
SMALL = (
    "data.image_size=32",
    "validation.num_samples=2",
    "validation.num_noises=1",
    "validation.timesteps=[0.5]",
    "train.batch_size=2",
    "device=cpu",
)


def configured(place: Path, preset: str, *words: str) -> Config:
    return load_config(preset=preset, assignments=[*SMALL, f"output_dir={place / 'runs'}", *words])


def made_run(place: Path, preset: str, name: str, *words: str) -> Path:
    """A run with one checkpoint, whose averaged weights are others than its own."""
    config = configured(place, preset, *words)
    run = RunFolder.create(config, name)
    saved(run, config)
    return run.path


def saved(run: RunFolder, config: Config) -> None:
    task = open_task(config)
    unet, alone = build_unet(config, task.spec, CPU), SingleProcess(CPU)
    trainee = build_trainee(config, unet, task.objective, alone, config.optimizer, 8, ema_decay=0.9)
    assert trainee.ema is not None
    for average in trainee.ema.shadow_params:
        average.add_(0.5)
    trainee.watch.detach()
    save_checkpoint(run.checkpoints, trainee, step=7, position=0, identity={})


def started(place: Path, preset: str, given: str, name: str = "new", *words: str) -> Config:
    """The configuration of a new run that starts from another."""
    config = configured(place, preset, f"model.weights={given}", *words)
    found = starting_from(config)
    assert found is not None
    return RunFolder.create(config, name, keeps=found.keep).saved_config()


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("runs/balance", "ema"),
        ("balance", "ema"),
        ("latest", "ema"),
        ("runs/balance/checkpoints/step-00000007", "ema"),
        ("runs/balance/checkpoints/step-00000007/ema", "ema"),
        ("runs/balance/checkpoints/step-00000007/unet", "raw"),
    ],
)
def test_a_run_is_named_in_every_way_and_its_weights_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = made_run(tmp_path, "white-balance-tiny", "balance", "seed=3")
    wanted = load_file(source / "checkpoints/step-00000007" / ("unet" if kind == "raw" else "ema") / FILE)
    told = open_task(configured(tmp_path, "white-balance-tiny", "seed=3"), CPU)
    config = started(tmp_path, "paint-to-image-tiny", given, "new", "seed=5")
    start = start_of(config)
    assert start is not None and start.weights == kind and start.step == 7 and Path(start.run).name == "balance"
    shutil.rmtree(source)  # the new run needs it no more
    task = open_task(config, CPU)
    unet = build_unet(config, task.spec, CPU)
    assert all(torch.equal(wanted[name], tensor) for name, tensor in unet.state_dict().items())
    prompts = [one.encode(one.random_batch(1)).conditions.tokens for one in (told, task)]
    assert prompts[0] is not None and torch.equal(prompts[0], prompts[1])  # of seed 3, not 5


def test_one_start_is_one_model_whichever_run_keeps_it(tmp_path: Path) -> None:
    """So that an overfit that passed proves the training that follows."""
    made_run(tmp_path, "white-balance-tiny", "balance")
    one, two = (started(tmp_path, "paint-to-image-tiny", "balance", name) for name in ("one", "two"))
    assert one.model.weights != two.model.weights and one.model_hash() == two.model_hash()
    changed = tmp_path / "runs/two/start" / FILE
    content = changed.read_bytes()
    changed.unlink()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert two.model_hash() != one.model_hash()
    assert configured(tmp_path, "paint-to-image-tiny").model_hash() != one.model_hash()


def test_a_run_that_was_moved_brings_its_start(tmp_path: Path) -> None:
    made_run(tmp_path, "white-balance-tiny", "balance", "seed=3")
    config = started(tmp_path, "paint-to-image-tiny", "balance")
    saved(RunFolder(tmp_path / "runs/new"), config)
    shutil.move(tmp_path / "runs/new", tmp_path / "elsewhere")
    model = open_model(tmp_path / "elsewhere", device="cpu")
    before = open_task(configured(tmp_path, "white-balance-tiny", "seed=3"), CPU)
    tokens = [one.encode(one.random_batch(1)).conditions.tokens for one in (before, model.task)]
    assert tokens[0] is not None and torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize(
    ("preset", "words", "said"),
    [
        ("object-removal-tiny", (), r"takes 8 channels \(x_t, input\), and this one 9 \(x_t, input, mask\)"),
        ("albedo-tiny", (), "a run of the task editing, and this is albedo"),
        ("insertion-tiny", (), "a run of the task editing, and this is insertion"),
        ("tiny", (), "a run of the task editing, and this is shadow"),
        ("paint-to-image-tiny", ("model.architecture=small",), "of the architecture tiny, and this is small"),
        ("paint-to-image-tiny", ("model.vae=embedded",), "latents of the VAE embedded-albedo, and this has embedded"),
    ],
)
def test_weights_that_would_mean_something_else_are_refused(
    tmp_path: Path, preset: str, words: tuple[str, ...], said: str
) -> None:
    made_run(tmp_path, "white-balance-tiny", "balance")
    with pytest.raises(UserError, match=said) as raised:
        starting_from(configured(tmp_path, preset, "model.weights=balance", *words))
    assert str(raised.value).startswith("--weights balance: ") and "\n" not in str(raised.value)


def test_another_prediction_is_refused(tmp_path: Path) -> None:
    made_run(tmp_path, "albedo-tiny", "before")
    objective = "task_options.model.objective=epsilon"
    with pytest.raises(UserError, match="it predicts v.* and this noise"):
        starting_from(configured(tmp_path, "albedo-tiny", "model.weights=before", objective))


def test_what_is_no_run_is_left_to_the_loader_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unet = build_unet(configured(tmp_path, "white-balance-tiny"), open_task(configured(tmp_path, "tiny")).spec, CPU)
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(tmp_path / "plain")
    for given in ("random", "embedded-inpainting", "plain", str(tmp_path / "plain"), "owner/name"):
        assert starting_from(configured(tmp_path, "tiny", f"model.weights={given}")) is None
    for given in ("nothing", "runs/nothing", "./nothing", "nothing@best", "latest"):
        (tmp_path / "runs").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="^--weights ") as raised:
            starting_from(configured(tmp_path, "tiny", f"model.weights={given}"))
        assert "\n" not in str(raised.value)


def test_the_commands_say_it_and_a_resume_does_not_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def says(*words: str, code: int = 0) -> str:
        settings: list[str] = [word for one in SMALL for word in ("--set", one)]
        done = CliRunner().invoke(app, [*words, *(settings if "--resume" not in words else [])])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    first = ("train", "--preset", "white-balance-tiny", "--skip-stages", "--max-steps", "2")
    says(*first, "--run", "balance")
    new = ("train", "--preset", "paint-to-image-tiny", "--skip-stages", "--max-steps", "2", "--run", "painting")
    assert "starting from the averaged weights (EMA) of runs/balance at step 2" in says(*new, "--weights", "balance")
    header: Any = next(one for one in read_records(tmp_path / "runs/painting/metrics.jsonl") if one["kind"] == "header")
    assert header["start"]["run"] == "runs/balance" and header["start"]["step"] == 2
    assert len(header["start"]["sha256"]) == 64
    shutil.rmtree(tmp_path / "runs/balance")
    says("train", "--run", "painting", "--resume", "--skip-stages", "--max-steps", "3")
    headers = [one for one in read_records(tmp_path / "runs/painting/metrics.jsonl") if one["kind"] == "header"]
    assert [one["start"] for one in headers] == [header["start"]] * 2
    assert CliRunner().invoke(app, ["report", "painting", "--out", "page.html"]).exit_code == 0
    assert "runs/balance, step 2" in (tmp_path / "page.html").read_text()
    refused = says(*new[:2], "object-removal-tiny", "--weights", "painting", "--run", "other", code=2)
    assert "takes 8 channels" in refused and not (tmp_path / "runs/other").exists()
    small = ("--samples", "2", "--max-steps", "1", "--run", "few", "--weights", "painting")
    says("overfit", "--preset", "white-balance-tiny", *small, code=1)
    found = json.loads((tmp_path / "runs/few/start/start.json").read_text())
    assert found["run"] == "runs/painting" and found["step"] == 3
