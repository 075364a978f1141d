"""`shadowlab export`, as it is typed."""

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.main import app
from shadowlab.exporting import run as module
from shadowlab.exporting.model_card import pipeline_card
from shadowlab.inference import LoadedModel, find_model, load_generator
from tests.inference.made import disk, picture


def export(*words: str) -> Any:
    return CliRunner().invoke(app, ["export", *words])


def test_the_command_runs_what_it_wrote_without_shadowlab(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pipeline"
    done = export(str(run), "--to", "diffusers", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["passed"] and report["largest_difference"] <= 1e-5 and "without shadowlab" in report["compared"]
    assert report["bytes"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert [file.name for file in out.parent.iterdir()] == ["pipeline"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~mask
    again = export(str(run), "--to", "diffusers", "--out", str(out))
    assert again.exit_code == 2 and "is there already" in again.output


def test_shadowlab_opens_the_folder_too(folder: Path, model: LoadedModel) -> None:
    found = find_model(folder)
    assert found.vae == folder / "vae"
    call = (picture(40, 60), disk(40, 60), 30.0, 90.0, 4.0)
    assert np.array_equal(load_generator(folder).generate(*call), load_generator(model).generate(*call))


def test_an_export_that_differs_fails_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for difference in (2e-5, float("nan")):
        monkeypatch.setattr(module, "compare_folder", lambda *_, worst=difference: (worst, "two pictures"))
        done = export(str(run), "--to", "diffusers", "--out", str(tmp_path / "out"))
        assert done.exit_code == 1 and "differs from the original" in done.output
        assert not list(tmp_path.iterdir())


def test_a_change_of_one_weight_is_a_difference(model: LoadedModel, folder: Path, tmp_path: Path, pipe: Any) -> None:
    """What the command compares with is the model itself, not what it wrote."""
    from shadowlab.exporting import diffusers_folder

    trial = model.task.exported.trials()[0]
    generator = load_generator(model)
    wanted = generator.generate(**trial.arguments, steps=trial.steps, seed=trial.seed)

    def elsewhere(*_: Any) -> list[np.ndarray]:
        others = model.task.exported.trials()[1:]
        right = [generator.generate(**one.arguments, steps=one.steps, seed=one.seed) for one in others]
        return [wanted + np.float32(3e-5) * (np.arange(wanted.size).reshape(wanted.shape) == 7), *right]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers_folder, "_run_elsewhere", elsewhere)
        difference, _ = diffusers_folder.compare_folder(model, model.task.exported, folder)
    assert difference == pytest.approx(3e-5, rel=1e-2)


@pytest.mark.parametrize("words", [["--to", "gguf"], ["--to", "torch", "--weights", "best"]])
def test_a_wrong_option_is_refused(run: Path, tmp_path: Path, words: list[str]) -> None:
    done = export(str(run), "--out", str(tmp_path / "out"), *words)
    assert done.exit_code == 2 and words[-1] in done.output and not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = export(str(run), "--to", "onnx", "--out", str(tmp_path / "out"))
    assert done.exit_code == 3 and "pip install 'shadowlab[export]'" in done.output
    assert len(done.output.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = export(str(run), "--to", "diffusers", "--out", str(tmp_path / "file" / "out"))
    assert done.exit_code == 2 and "cannot be written" in done.output


def test_the_card_names_no_folder_of_this_machine(model: LoadedModel, run: Path, stage_folder: dict[str, Path]) -> None:
    """Whoever publishes a model publishes its card; folders around it, and the user's name in them, stay at home."""
    card = pipeline_card(model, model.task.exported)
    for path in (run, *stage_folder.values()):
        assert str(path.parent) not in card
    assert "trust_remote_code" in card and "Licence" in card and f"{run.name}, step 2" in card


@pytest.mark.parametrize(
    ("weights", "licence"),
    [("stabilityai/stable-diffusion-xl-base-1.0", "openrail++"), ("someone/else", "unknown"), ("random", "unknown")],
)
def test_the_licence_follows_the_weights(model: LoadedModel, weights: str, licence: str) -> None:
    from dataclasses import replace

    import yaml

    config = model.config.model_copy(update={"model": model.config.model.model_copy(update={"weights": weights})})
    card = pipeline_card(replace(model, config=config), model.task.exported)
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == licence and front["library_name"] == "diffusers"
    assert front.get("base_model") == (None if weights == "random" else weights)
