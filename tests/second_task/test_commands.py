"""Every command on a task that nothing outside of this folder names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import shadowlab.tasks
from cli.main import app
from diagnostics import read_records
from shadowlab.inference import load_generator
from shadowlab.planning import measure
from shadowlab.planning.rehearsal import ALL_MOMENTS
from shadowlab.settings import load_config
from tests import tiny
from tests.second_task.negative import NegativeTask, VPrediction

STEPS = 4
WORDS = (
    "task=negative",
    "data.path=12 pictures",
    f"data.image_size={tiny.SIDE * 8}",
    "train.batch_size=2",
    "optimizer.learning_rate=1e-2",
    "optimizer.warmup_steps=0",
    "train.validate_every=2",
    "checkpoint.every_steps=2",
    "validation.num_samples=2",
    "validation.num_noises=1",
    "validation.timesteps=[0.0, 0.5]",
    "overfit.num_samples=2",
    "overfit.max_steps=3",
    "overfit.min_r2=-1e9",
    "diagnostics.statistics_every=1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with weights, in which all commands run; the task is known for as long."""
    root = tmp_path_factory.mktemp("second")
    tiny.save_hub_unet(root / "unet", addition_embed_type=None, addition_time_embed_dim=None)
    tiny.save_vae(root / "vae")
    known = shadowlab.tasks.task_class
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shadowlab.tasks, "task_class", lambda name: NegativeTask if name == "negative" else known(name))
        patch.chdir(root)
        yield root


def shadowlab_says(*words: str, code: int = 0) -> str:
    """All that it prints; with --json what is on stdout alone."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.stdout if "--json" in words else done.output


def run(command: str, *words: str, code: int = 0) -> str:
    options = [word for one in (*WORDS, "model.vae=vae") for word in ("--set", one)]
    return shadowlab_says(*command.split(), "--weights", "unet", "--device", "cpu", *options, *words, code=code)


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """Stages that `train` asks for, then 4 steps; and the same in two parts."""
    for word, steps, more in (("whole", STEPS, ()), ("parts", 2, ()), ("parts", STEPS, ("--resume",))):
        said = run("train", "--run", word, "--max-steps", str(steps), *more)
        assert "train: passed" in said
    return place / "runs" / "whole"


def weights(run_folder: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run_folder / "checkpoints" / f"step-{step:08d}"
    return {f"{f.relative_to(folder)}:{k}": v for f in folder.rglob("*.safetensors") for k, v in load_file(f).items()}


def test_it_is_checked(place: Path) -> None:
    stage = json.loads(run("check-forward", "--json"))
    names = {check["name"] for check in stage["checks"]}
    assert {"cross-attention is kept", "conv_in takes copies of an input for it at init"} <= names
    assert "output and gradient answer to prompt" in names
    assert {"the true v leads from noise to data", "timesteps belong to x_t"} <= names
    assert "input [x_t, picture]" in {row["tensor"] for row in stage["path"]}


def test_its_precision_is_checked(place: Path) -> None:
    assert "holds: fp32" in run("check-precision")


def test_it_overfits_by_its_own_criterion(place: Path) -> None:
    said = run("overfit")
    assert "mean absolute error <= 0.9" in said and "(the picture itself" in said
    assert "soft IoU" not in said and "pictures (picture / negative / one step)" in said
    said = run("overfit", "--set", "task_options.max_mae=0.001", code=1)
    assert "mean absolute error" in said and "(needs 0.001)" in said


def test_resumed_training_is_training_bit_for_bit(trained: Path) -> None:
    whole, parts = (weights(trained.with_name(name), STEPS) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert not [name for name in whole if not torch.equal(whole[name], parts[name])]


def test_its_model_is_opened_and_generates(trained: Path) -> None:
    generator = load_generator(trained, device="cpu")
    picture = torch.rand(3, tiny.SIDE * 8, tiny.SIDE * 8)
    made = generator.generate(picture, steps=2, seed=5)
    assert made.shape == picture.shape and 0 <= float(made.min()) < float(made.max()) <= 1
    assert torch.equal(made, generator.generate(picture, steps=2, seed=5))


def test_only_its_own_parameters_train(trained: Path) -> None:
    first, last = weights(trained, 2), weights(trained, STEPS)
    own = [name for name in first if name.startswith("unet/")]
    moved = [name for name in own if not torch.equal(first[name], last[name])]
    assert moved and all(".attn1." in name for name in moved)
    states = {name.partition(":")[2] for name in last if name.startswith("optimizer")}
    assert states and all(".attn1." in name for name in states)


def test_its_records_and_views(trained: Path) -> None:
    last = [record for record in read_records(trained / "metrics.jsonl") if record["kind"] == "validation"][-1]
    assert {"mae", "itself_mae", "response_prompt", "r2"} <= last.keys()
    assert not {"soft_iou", "black_rmse", "response_theta"} & last.keys()
    assert "rules" in shadowlab_says("health", "whole")
    assert "attn1" in shadowlab_says("inspect", "whole", "--layers", "*attn1*")
    shadowlab_says("report", "whole")
    page = (trained / "reports" / "report.html").read_text()
    assert "Error on held-out samples" in page and "soft IoU" not in page


def test_it_is_judged_by_its_own_metric_and_baseline(trained: Path) -> None:
    words = ("--steps", "1,2", "--seeds", "2", "--device", "cpu", "--out", "judged", "--json")
    found = json.loads(shadowlab_says("evaluate", "whole", *words))
    assert found["task"] == "negative" and found["control"] == {} and found["published"] == {}
    assert found["tracks"].keys() == {"all", "all, trained objects"}
    for track in found["tracks"].values():
        assert track["methods"].keys() == {"model, 1 step", "model, 2 steps", "the picture itself"}
        assert track["methods"]["model, 1 step"].keys() == {"mae"}
    assert "soft IoU" not in Path("judged/evaluation.html").read_text()


def test_its_memory_is_planned(place: Path) -> None:
    plan = json.loads(run("plan", "--strategy", "single", "--json"))
    items = plan["strategies"]["single"]["peaks"]["optimizer step"]["items"]
    assert items["AdamW moments"] < items["weights"] and items["EMA"] < items["weights"]  # frozen ones have neither


def test_its_memory_is_measured_at_its_own_width_of_tokens(place: Path) -> None:
    assignments = [*WORDS, f"model.weights={place / 'unet'}", f"model.vae={place / 'vae'}"]
    config = load_config(options={"device": "cpu"}, assignments=assignments)
    device, moments = torch.device("cpu"), list[str]()
    measure._rehearsal(measure._smallest(config, NegativeTask.spec), device, moments.append).run()
    assert moments == list(ALL_MOMENTS)


def test_latents_of_pictures_that_lie_in_no_file_are_refused_in_one_line(place: Path) -> None:
    assert "sample n00: its target picture is no file" in run("data encode", "--out", "latents", code=2)


def test_its_data_are_checked_by_what_it_looks_for(place: Path) -> None:
    report = json.loads(shadowlab_says("data", "check", "12 pictures", "--set", "task=negative", "--json"))
    assert report["passed"] and (report["num_samples"], report["num_objects"]) == (12, 6)
    assert report["notices"][0] == "made of random numbers" and "of 12 negatives are bright" in report["notices"][1]


def test_a_nan_is_traced_and_explained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = VPrediction.loss

    def loss(self: Any, prediction: Any, noise: Any, data: Any, t: Any) -> Any:
        per_sample = original(self, prediction, noise, data, t)
        return per_sample.neg().log() if per_sample.requires_grad else per_sample  # validation is spared

    monkeypatch.setattr(VPrediction, "loss", loss)
    said = run("train", "--skip-stages", "--run", "bad", "--max-steps", "2", code=1)
    assert "born in log" in said
    said = shadowlab_says("why", "bad", "--only", "again", "--only", "operator")
    assert "log" in said and "again" in said


def test_its_options_are_its_own(place: Path) -> None:
    assert "task_options.min_soft_iou" in run("overfit", "--set", "task_options.min_soft_iou=0.5", code=2)
    assert "no object, mask or light" in run("check-forward", "--theta", "3", code=2)
