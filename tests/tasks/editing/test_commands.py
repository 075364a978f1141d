"""The commands of a user of the three edits, on the lists that ship, and with a picture of one's own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from shadowlab.tasks.editing import EDITS
from tests.tasks.editing.pictures import disc, save, scene

SMALL = (
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


@pytest.mark.parametrize("edit", list(EDITS))
def test_the_stages_and_a_picture_of_ones_own(edit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(command: str, *words: str) -> str:
        side = 128 if edit == "paint-to-image" else 64  # photographs of 64 pixels are too fine for the small VAE
        settings = [word for one in (*SMALL, f"data.image_size={side}") for word in ("--set", one)]
        return says(*command.split(), "--preset", f"{edit}-tiny", "--device", "cpu", *settings, *words)

    assert "check-forward: passed" in run("check-forward", "--run", "check")
    assert "overfit: passed" in run("overfit --samples 2 --max-steps 2", "--run", "overfit")
    assert "train: passed" in run("train --max-steps 2", "--run", "one")
    judged = says("evaluate", "one", "--steps", "1", "--seeds", "1", "--out", "judged")
    assert (("grey-world" in judged) == (edit == "white-balance") and "the input" in judged) or "the painting" in judged
    save(scene(1, 40), tmp_path / "photo.png")
    save(disc(1, 40), tmp_path / "mask.png")
    own = ["generate", "one", "--image", "photo.png", "--out", "out.png"]
    masked = [*own, "--mask", "mask.png"]
    if edit != "object-removal":
        assert "has no mask" in says(*masked, code=2)
        says(*own)
    else:
        assert "add --mask FILE" in says(*own, code=2)
        said = says("export", "one", "--to", "diffusers", "--out", "pipeline")
        assert "without shadowlab" in said and (tmp_path / "pipeline/editing_pipeline.py").is_file()
        says(*masked)
        before, after = (np.asarray(Image.open(tmp_path / name)) for name in ("photo.png", "out.png"))
        outside = disc(1, 40) < 128
        assert np.array_equal(before[outside], after[outside]) and not np.array_equal(before, after)
    assert "is for albedos" in says(*own, "--ensemble", "3", code=2)
    assert "theta" in says(*own, "--theta", "3", code=2)
