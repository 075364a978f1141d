"""The commands of a user of the albedo task, on the pairs that ship, and on a list of one's own."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app

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


def test_a_list_of_pairs_declares_its_colour_spaces(place: Path) -> None:
    listed = ("--data", "lists/train.txt", "--skip-stages", "--max-steps", "1")
    assert "colour_space" in run("train", *listed, code=2) or "beauty_space" in run("train", *listed, code=2)
    spaces = ("--set", "task_options.beauty_space=srgb", "--set", "task_options.albedo_space=srgb")
    assert "train: passed" in run("train", *listed, *spaces, "--run", "listed")
