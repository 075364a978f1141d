"""The commands of a user of the insertion task, on rows of one's own: the stages, and a picture of one's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli.main import app
from shadowlab.models import load_unet
from shadowlab.settings import load_config
from shadowlab.tasks.insertion.dataset import EMBEDDED_PATH
from shadowlab.tasks.insertion.task import InsertionTask
from tests.tasks.insertion.rows import make_rows, object_of, row_of, save

SMALL = (
    "validation.num_samples=2",
    "validation.num_noises=1",
    "validation.timesteps=[0.5]",
    "train.batch_size=2",
    "train.ema_decay=null",
    "overfit.min_r2=-1e9",
    "task_options.max_rmse=1",
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def says(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def run(command: str, *words: str, code: int = 0) -> str:
    settings = [word for one in SMALL for word in ("--set", one)]
    return says(*command.split(), "--preset", "insertion-tiny", "--device", "cpu", *settings, *words, code=code)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_rows(tmp_path / "data", num_objects=4)
    target, mask = row_of(9, 1, 70, 101)
    save(target, tmp_path / "room.png")
    save(mask, tmp_path / "where.png")
    save(object_of(9), tmp_path / "chair.png")
    return tmp_path


def test_the_stages_train_self_attention_alone_and_a_picture_of_ones_own_is_composited(place: Path) -> None:
    listed = ("--data", "data/rows.csv")
    assert "check-forward: passed" in run("check-forward", *listed, "--run", "check")
    said = run("overfit --samples 2 --max-steps 2", *listed, "--run", "overfit", code=1)
    assert "the result does not come from mask" in said  # the base paints well from the start; two steps prove no input
    assert "train: passed" in run("train --max-steps 3 --skip-stages", *listed, "--run", "one")
    _self_attention_alone_has_moved(place)
    says("evaluate", "one", "--steps", "1", "--seeds", "1", "--device", "cpu", "--out", "judged", *listed)
    methods = json.loads((place / "judged/evaluation.json").read_text())["tracks"]["all"]["methods"]
    assert {"model, 1 step", "mean fill", "copy-paste"} == methods.keys()
    assert methods["copy-paste"]["psnr_inside"]["mean"] > methods["mean fill"]["psnr_inside"]["mean"]
    renders = ("--data", str(shipped_rows(place / "renders", 8)))
    says("evaluate", "one", "--steps", "1", "--seeds", "1", "--device", "cpu", "--out", "renders/judged", *renders)
    methods = json.loads((place / "renders/judged/evaluation.json").read_text())["tracks"]["all"]["methods"]
    assert methods["model, 1 step"]["psnr_inside"]["mean"] > methods["copy-paste"]["psnr_inside"]["mean"]

    words = ("generate", "one", "--object", "chair.png", "--mask", "where.png", "--device", "cpu")
    said = says(*words, "--target", "room.png", "--steps", "2", "--out", "made.png")
    assert "outside the mask as in room.png" in said
    given, made, mask = (np.asarray(Image.open(place / name)) for name in ("room.png", "made.png", "where.png"))
    assert made.shape == given.shape
    assert np.array_equal(made[mask < 128], given[mask < 128])  # bit for bit
    assert (made[mask >= 128] != given[mask >= 128]).any()
    again = says(*words, "--target", "room.png", "--out", "guided.png", "--guidance", "3")
    assert "condition_dropout 0" in again  # guidance of a model that never went without
    save(object_of(3), place / "lamp.png")
    for own in ("chair", "lamp"):  # at scale 0 no object is seen; 0 is a scale, not the absence of one
        says(*words, "--object", f"{own}.png", "--target", "room.png", "--out", f"{own}_0.png", "--guidance", "0")
    blind, other = (np.asarray(Image.open(place / f"{own}_0.png")).astype(int) for own in ("chair", "lamp"))
    assert np.abs(blind - other).max() <= 1 and np.abs(blind - made).max() > 1
    assert "--mask" in says(*words[:4], "--target", "room.png", "--out", "x.png", code=2)
    assert "insertion" in says(*words, "--target", "room.png", "--theta", "3", "--out", "x.png", code=2)


def shipped_rows(folder: Path, count: int) -> Path:
    """A CSV file of every 16th row that ships, copied."""
    first, *rows = EMBEDDED_PATH.read_text().splitlines()
    chosen = rows[:: len(rows) // count][:count]
    for name in {name for row in chosen for name in row.split(",")}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EMBEDDED_PATH.parent / name, folder / name)
    (folder / "rows.csv").write_text("\n".join([first, *chosen]) + "\n")
    return folder / "rows.csv"


def _self_attention_alone_has_moved(place: Path) -> None:
    """Of the weights that training began with, every tensor of self-attention is another, and no other is."""
    checkpoint = max((place / "runs/one/checkpoints").iterdir())
    files = [file for file in checkpoint.rglob(WEIGHTS) if "ema" not in file.parts[-2]]
    after = load_file(files[0])
    config = load_config(preset="insertion-tiny").model
    before = load_unet(config.weights, config.architecture, InsertionTask.spec, seed=0).state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, tensor in after.items() if not bool((tensor == before[name]).all())}
    assert moved == {name for name in before if ".attn1." in name}
    assert len(moved) == 50


def test_what_is_wrong_is_said_before_a_model_is_opened(place: Path) -> None:
    words = ["generate", "nowhere", "--target", "room.png", "--object", "chair.png", "--mask", "where.png"]
    assert "--steps" in says(*words, "--out", "a.png", "--steps", "0", code=2)
    assert ".png" in says(*words, "--out", "a.jpg", code=2)
    assert "no such picture" in says(*words[:-1], "other.png", "--out", "a.png", code=2)
    assert "--target; add it" in says(*words[:2], *words[4:], "--guidance", "2", "--out", "a.png", code=2)
