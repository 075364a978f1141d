"""The numbers of a step that met a value that is not finite are recorded, whichever step it is."""

import json
import math
from pathlib import Path

import pytest
import torch

from diagnostics import NonFiniteError
from diagnostics.records.history import History
from diagnostics.records.lines import read_records
from shadowlab.runs.folder import RunFolder
from shadowlab.training.step import StepPlace
from shadowlab.training.telemetry import Telemetry
from tests import tiny


def trip(hub_folder: Path, folder: Path, number: int, *words: str) -> tuple[History, NonFiniteError]:
    """A run of `number` steps, of which the last one trips."""
    words = (*words, f"output_dir={folder}", "diagnostics.statistics_every=100")
    config = tiny.config_of(hub_folder, *words)
    run, trainee = RunFolder.create(config, "run"), tiny.trainee_of(hub_folder, *words)
    observed = Telemetry(run, trainee, config.diagnostics, kind="train")
    for step in range(number - 1):
        observed.step([tiny.encoded_batch(range(2 * step, 2 * step + 2))], StepPlace(step, 2 * step, 2))
    batch = tiny.encoded_batch(range(2 * number - 2, 2 * number))
    if "fp16-pure" not in " ".join(words):
        batch.data[1] = math.inf
    with pytest.raises(NonFiniteError) as raised:
        observed.step([batch], StepPlace(number - 1, 2 * number - 2, 2))
    observed.close()
    return History.read(run.metrics), raised.value


@pytest.mark.parametrize("number", [1, 3])
def test_a_bad_sample_leaves_every_layer_and_the_loss(hub_folder: Path, tmp_path: Path, number: int) -> None:
    history, error = trip(hub_folder, tmp_path, number)
    record = history.records()[-1]
    assert record["step"] == number and record["tripped"] is True
    assert not math.isfinite(record["loss"]) and record["learning_rate"] > 0
    assert len(record["samples"]) == 2 and len(record["loss_by_t"]) > 0
    assert set(record["layers"]) > {"conv_in", "conv_out"}
    assert record["layers"]["conv_in"]["activation"]["num_nonfinite"] > 0
    assert "gradient" not in record["layers"]["conv_in"]  # the loss was bad: the repetition ends there
    assert all(numbers["update_ratio"] is None for numbers in record["parameters"].values())
    assert error.incident is not None
    kept = json.loads((error.incident / "layers.json").read_text())
    assert list(kept) == list(record["layers"])


def test_an_optimizer_that_divides_by_zero_leaves_finite_gradients(hub_folder: Path, tmp_path: Path) -> None:
    history, error = trip(hub_folder, tmp_path, 1, "precision=fp16-pure", "allow_unsafe=true", "optimizer.eps=1e-8")
    [record] = history.records()
    assert error.verdict.phase == "optimizer"
    assert math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])
    norms = [numbers["gradient_norm"] for numbers in record["parameters"].values()]
    assert math.hypot(*norms) == pytest.approx(record["grad_norm"], rel=1e-5)
    layers = record["layers"]
    assert all(part["num_nonfinite"] == 0 for parts in layers.values() for part in parts.values())
    assert sum("gradient" in parts for parts in layers.values()) > 0.9 * len(layers)


def test_measuring_the_repetition_is_the_same_as_measuring_the_step(hub_folder: Path, tmp_path: Path) -> None:
    """The tracer sees none of it, and the numbers are those of a step that is measured without a fault."""
    words = ("precision=fp16-pure", "allow_unsafe=true")
    history, _ = trip(hub_folder, tmp_path, 1, *words, "optimizer.eps=1e-8")
    trainee = tiny.trainee_of(hub_folder, *words, "optimizer.eps=1e-4", "diagnostics.statistics_every=1")
    run = RunFolder.create(tiny.config_of(hub_folder, *words, f"output_dir={tmp_path}"), "sound")
    observed = Telemetry(run, trainee, tiny.config_of(hub_folder).diagnostics, kind="train")
    observed.step([tiny.encoded_batch(range(2))], StepPlace(0, 0, 2))
    observed.close()
    [tripped], [sound] = history.records(), [r for r in read_records(run.metrics) if "layers" in r]
    assert tripped["layers"] == sound["layers"]  # type: ignore[typeddict-item]
    assert torch.tensor(tripped["loss"]) == torch.tensor(sound["loss"])  # type: ignore[typeddict-item]
