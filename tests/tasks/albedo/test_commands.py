"""The commands of a user of the albedo task, on the pairs that ship, and on a list of one's own."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from tests.tasks.albedo.folders import make_folder

SMALL = (
    "data.image_size=64",
    "validation.num_samples=2",
    "validation.num_noises=1",
    "validation.timesteps=[0.5]",
    "train.batch_size=2",
    "overfit.min_r2=-1e9",
    "task_options.max_rmse=1",
)


def says(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def run(command: str, *words: str, code: int = 0) -> str:
    settings = [word for one in SMALL for word in ("--set", one)]
    return says(*command.split(), "--preset", "albedo-tiny", "--device", "cpu", *settings, *words, code=code)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's, with pairs and a list of them: a coloured wall, lit from the left."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(6):
        albedo = Image.new("RGB", (64, 64), (40 + 30 * number, 200 - 20 * number, 90))
        albedo.paste((230, 230, 60), (8 * number, 10, 8 * number + 20, 40))
        light = Image.linear_gradient("L").rotate(90).resize((64, 64))
        beauty = Image.composite(albedo, Image.new("RGB", (64, 64)), light)
        for name, picture in (("beauty", beauty), ("albedo", albedo)):
            path = tmp_path / "lists" / f"{name}{number}.png"
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
        lines.append(f"beauty{number}.png albedo{number}.png")
    (tmp_path / "lists" / "train.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_stages_and_a_picture_of_ones_own(place: Path) -> None:
    assert "check-forward: passed" in run("check-forward", "--run", "check")
    assert "overfit: passed" in run("overfit --samples 2 --max-steps 2", "--run", "overfit")
    assert "train: passed" in run("train --max-steps 2", "--run", "one")
    made = says("generate", "one", "--image", "lists/beauty1.png", "--ensemble", "2", "--out", "albedo.png")
    assert "median of 2 seeds" in made
    with Image.open(place / "albedo.png") as picture:
        assert picture.size == (64, 64)
        assert picture.mode == "RGB"
    make_folder(place / "others", num_objects=2, lights=1)
    assert "0 problems" in says(*["data", "check", "others", "--preset", "albedo-tiny"])
    judged = says(
        *["evaluate", "one", "--data", "others", "--steps", "1,2", "--seeds", "5", "--out", "judged", "--json"]
    )
    assert "median of 5" in judged
    methods = json.loads((place / "judged" / "evaluation.json").read_text())["tracks"]["all"]["methods"]
    for steps in ("1 step", "2 steps"):
        single, together = methods[f"model, {steps}"], methods[f"model, {steps}, median of 5"]
        assert together["rmse"]["mean"] < single["rmse"]["mean"]
        assert together["rmse"]["std"] == 0.0 < single["rmse"]["std"]
    page = (place / "judged" / "evaluation.html").read_text()
    assert "model, 2 steps, median of 5" in page
    assert "> median of 5<" in page  # its own curve over the steps


def test_why_of_a_fault_in_the_optimizer(place: Path) -> None:
    """The step is repeated from the state before it, the count of the average's updates included."""
    options = ("--skip-stages", "--precision", "fp16-pure", "--set", "allow_unsafe=true", "--max-steps", "2")
    assert "phase optimizer of step 1" in run("train", *options, "--run", "half", code=1)
    said = says("why", "half")
    assert "the same step again: same fault" in said
    assert "train with --precision bf16" in said


def test_a_list_of_pairs_declares_its_colour_spaces(place: Path) -> None:
    listed = ("--data", "lists/train.txt", "--skip-stages", "--max-steps", "1")
    assert "colour_space" in run("train", *listed, code=2) or "beauty_space" in run("train", *listed, code=2)
    spaces = ("--set", "task_options.beauty_space=srgb", "--set", "task_options.albedo_space=srgb")
    assert "train: passed" in run("train", *listed, *spaces, "--run", "listed")
