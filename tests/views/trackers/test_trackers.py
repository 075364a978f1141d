"""Trackers show what the records say, NaN or not, and whatever they raise, the run goes on."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from diagnostics.board import run_numbers
from diagnostics.records import rounded
from diagnostics.records.lines import read_records
from diagnostics.statistics import histogram
from shadowlab.errors import MissingDependencyError, SinkError, UserError
from shadowlab.extras import require_extras
from shadowlab.runs.folder import RunFolder
from shadowlab.settings.files import load_config
from shadowlab.training.sinks import Sink, Sinks
from shadowlab.training.step import StepPlace
from shadowlab.training.telemetry import Telemetry
from shadowlab.views.trackers import mlflow_session
from shadowlab.views.trackers.numbers import Numbers
from shadowlab.views.trackers.sinks import open_views, tracker
from shadowlab.views.trackers.tracker import Beginning, Tracker
from shadowlab.views.trackers.wandb_session import mode
from tests import runs, tiny
from tests.views.trackers.kept import Curves, mlflow_curves, wandb_curves, wandb_files, wandb_rows

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
installed = {
    name: pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"the extra {name} is not installed")
    for name, package in PACKAGES.items()
}
EACH = [pytest.param(name, marks=mark) for name, mark in installed.items()]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key and without a server, as on a fresh machine."""
    for name in os.environ:
        if name.startswith(("WANDB_", "MLFLOW_")) and name not in mlflow_session._OWN:
            monkeypatch.delenv(name)


def same(found: float, wanted: float) -> bool:
    return found == wanted or (math.isnan(found) and math.isnan(wanted))


def assert_same_curves(found: Curves, wanted: Curves) -> None:
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert all(same(a, b) for (_, a), (_, b) in zip(found[name], points, strict=True)), name


def wanted_curves(records: Sequence[Mapping[str, Any]], *, ranges: bool = False) -> Curves:
    """What records say. ranges: of histograms, the least and largest finite value."""
    found: Curves = {}
    for record in records:
        if "step" not in record:
            continue
        numbers = dict(run_numbers(record))
        blocks: dict[str, Mapping[str, float]] = {}
        for name, content in record.get("histograms", {}).items() if ranges else ():
            if content["counts"]:
                numbers |= {f"{name}/{end}": rounded(content[end]) for end in ("low", "high")}
        for name, value in (numbers | blocks).items():
            found.setdefault(name, []).append((record["step"], float(value)))
    return found


def some_records() -> list[dict[str, Any]]:
    """A run of four steps with everything that breaks a logger: NaN, Inf, empty and constant histograms."""
    values = torch.tensor([0.5, -1.0, 2.0, math.nan, math.inf])
    histograms = {
        "histogram_gradient/whole": histogram(values[:3]),
        "histogram_gradient/bad": histogram(values),
        "histogram_gradient/lost": histogram(values[3:]),
        "histogram_weight/constant": histogram(torch.ones(4)),
        "histogram_weight/wide": histogram(torch.tensor([-3e38, 3e38])),
    }
    steps = [
        {"kind": "train", "step": step, "loss": loss, "grad_norm": 10.0**-step, "loss_by_t": {"0.00-0.25": loss}}
        for step, loss in enumerate((1.0, math.nan, math.inf, -math.inf), 1)
    ]
    steps[1]["histograms"] = {name: asdict(own) for name, own in histograms.items()}
    return [
        {"kind": "header", "stage": "train"},
        *steps,
        {"kind": "validation", "step": 4, "loss": 0.25, "r2": -math.inf},
    ]


def shown(kind: str, run: Path, records: Sequence[Mapping[str, Any]], name: str = "run") -> None:
    sink = tracker(kind, run, {"seed": 0, "data.path": "embedded"}, name)
    for record in records:
        sink.write(record)
    sink.close()


# --- the same numbers ------------------------------------------------------------------------------------------------


@installed["wandb"]
def test_wandb_keeps_every_number_of_the_records(tmp_path: Path) -> None:
    shown("wandb", tmp_path, some_records())
    [file] = wandb_files(tmp_path)
    assert_same_curves(wandb_curves(file), wanted_curves(some_records()))
    rows = list(wandb_rows(file))
    kept = {name: value for row in rows for name, value in row.items() if isinstance(value, dict)}
    assert set(kept) == {
        *("histogram_gradient/whole", "histogram_gradient/bad"),
        *("histogram_weight/constant", "histogram_weight/wide"),
    }
    bad = next(record for record in some_records() if "histograms" in record)["histograms"]["histogram_gradient/bad"]
    assert kept["histogram_gradient/bad"]["values"] == bad["counts"] and sum(bad["counts"]) == 3
    edges = kept["histogram_gradient/bad"]["bins"]
    assert (edges[0], edges[-1]) == (bad["low"], bad["high"]) and all(math.isfinite(edge) for edge in edges)
    assert {row["_step"] for row in rows} == set(range(len(rows)))


@installed["mlflow"]
def test_mlflow_keeps_every_number_of_the_records(tmp_path: Path) -> None:
    shown("mlflow", tmp_path, some_records())
    [found] = mlflow_curves(tmp_path / "mlflow")
    assert_same_curves(found, wanted_curves(some_records(), ranges=True))


@pytest.mark.parametrize("kind", EACH)
def test_words_and_pictures_are_kept(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    sink = tracker(kind, run, {}, "run")
    sink.write({"kind": "header", "stage": "train"})
    sink.write({"kind": "stage", "step": 3, "stage": "train", "passed": False, "message": "it ended", "summary": {}})
    sink.image("validation/comparison", torch.rand(3, 8, 16), 3)
    sink.close()
    assert len(list(run.rglob("*.png"))) == 1
    if kind == "mlflow":
        assert any("it ended" in file.read_text() for file in run.rglob("tags/*/*"))


def test_blocks_are_summed_up_for_thousands_of_parameters() -> None:
    rates = {f"mid_block.resnets.{i}.conv1.weight": {"gradient_norm": float(i), "update_ratio": None} for i in range(9)}
    found = Numbers().of({"kind": "train", "step": 1, "loss": 2.0, "parameters": rates})
    group = "01 mid_block/block_parameter_gradient_norm"
    assert found == {"train/loss": 2.0, f"{group}/median": 4.0, f"{group}/min": 0.0, f"{group}/max": 8.0}


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EACH)
def test_a_resumed_run_goes_on_in_a_session_of_its_own(tmp_path: Path, kind: str) -> None:
    """Resumed from step 2 although step 3 was shown: in no session does a step come again or go back."""
    first = [{"kind": "train", "step": step, "loss": rounded(1.0 / step)} for step in (1, 2, 3)]
    second = [{"kind": "train", "step": step, "loss": rounded(2.0 / step)} for step in (3, 4, 5)]
    config = load_config(assignments=[f"tracking=[{kind}]"])
    for resumed_at, records in ((-1, first), (2, second)):
        [sink] = open_views(config, tmp_path, resumed_at=resumed_at)
        for record in first[: max(resumed_at, 0)]:
            sink.remember(record)
        for record in records:
            sink.write(record)
        sink.close()
    if kind == "wandb":
        sessions = [wandb_curves(file) for file in wandb_files(tmp_path)]
    else:
        sessions = mlflow_curves(tmp_path / "mlflow")
    assert [session["train/loss"] for session in sessions] == [
        [(record["step"], record["loss"]) for record in records] for records in (first, second)
    ]


# --- whatever it raises ----------------------------------------------------------------------------------------------


class Broken:
    """A session whose library raises at a word."""

    def __init__(self, at: str, error: BaseException) -> None:
        self.at, self.error = at, error

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> None:
            if name == self.at:
                raise self.error

        return call


def broken(at: str, error: BaseException) -> Tracker:
    def begin(beginning: Beginning) -> Any:
        if at == "begin":
            raise error
        return Broken(at, error)

    return Tracker("W&B", begin, Beginning(Path("runs/a"), {}, "a"))


ERRORS = [ValueError("autodetected range of [nan, nan] is not finite"), RuntimeError(), OSError(28, "No space left")]


@pytest.mark.parametrize(
    ("at", "error"),
    [
        *(("numbers", error) for error in ERRORS),
        *((at, ERRORS[0]) for at in ("begin", "histogram", "text", "picture", "close")),
    ],
)
def test_a_tracker_that_raises_is_said_once_and_the_run_goes_on(
    hub_folder: Path, tmp_path: Path, at: str, error: Exception
) -> None:
    config = tiny.config_of(hub_folder, f"output_dir={tmp_path}", "diagnostics.histograms_every=1")
    run, trainee, warnings = RunFolder.create(config, "run"), tiny.trainee_of(hub_folder), []
    sinks: list[Sink] = [broken(at, error)]
    telemetry = Telemetry(
        run, trainee, config.diagnostics, kind="train", warn=warnings.append, open_sinks=lambda: sinks
    )
    for step in range(2):
        telemetry.step([tiny.encoded_batch(range(2 * step, 2 * step + 2))], StepPlace(step, 2 * step, 2))
        telemetry.image("a", torch.rand(3, 4, 4), step + 1)
        telemetry.write({"kind": "stage", "step": step + 1, "stage": "train", "passed": True, "message": ""})
    telemetry.close()
    lost = [warning for warning in warnings if warning.startswith("W&B: cannot be written any more (")]
    assert len(lost) == 1 and type(error).__name__ in lost[0] and "the run goes on without it" in lost[0]
    records = list(read_records(run.metrics))
    found = [one for record in records for one in record.get("findings", []) if one["rule"] == "view lost"]
    assert [(one["severity"], one["subject"]) for one in found] == [("warning", "W&B")]
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2]


def test_ctrl_c_in_a_tracker_is_ctrl_c() -> None:
    sinks = Sinks([broken("numbers", KeyboardInterrupt())], None, "")
    with pytest.raises(KeyboardInterrupt):
        sinks.write({"kind": "train", "step": 1, "loss": 1.0})


def test_an_error_is_one_line() -> None:
    sink = broken("numbers", ValueError("a\nb" + 900 * "c"))
    with pytest.raises(SinkError) as raised:
        sink.write({"kind": "train", "step": 1, "loss": 1.0})
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKAGES)
def test_without_its_package_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("shadowlab.extras.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as raised:
        require_extras(load_config(assignments=[f"tracking=[tensorboard, {kind}]"]))
    wanted = f"tracking={kind} needs {PACKAGES[kind]} (it is not installed): pip install 'shadowlab[{kind}]'"
    assert str(raised.value) == wanted
    require_extras(load_config())


@pytest.mark.parametrize("value", ["[comet]", "[wandb, wandb]", "wandb"])
def test_what_is_no_list_of_trackers_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="tracking"):
        load_config(assignments=[f"tracking={value}"])


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_API_KEY": ""}, "offline"),
    ],
)
def test_without_a_key_nothing_leaves_the_machine(environment: dict[str, str], wanted: str) -> None:
    assert mode(environment) == wanted


# --- whole runs ------------------------------------------------------------------------------------------------------


@installed["wandb"]
@installed["mlflow"]
def test_a_run_whose_histograms_hold_nan_goes_on(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """float16 gradients overflow until the scaler has found its scale: those steps have NaN in their histograms."""
    words = runs.command(
        stage_folder,
        tmp_path,
        "run",
        4,
        "tracking=[tensorboard, wandb, mlflow]",
        "precision=fp16",
        "diagnostics.histogram_parameters=[conv_in.weight, conv_out.weight]",
        "train.validate_every=2",
    )
    words[words.index("diagnostics.histograms_every=0")] = "diagnostics.histograms_every=1"
    program = (
        "import torch\nfrom cli.main import main\n"
        "class Scaler(torch.amp.GradScaler):\n"
        "    def __init__(self, device):\n"
        "        super().__init__(device, init_scale=2.0**40)\n"
        "torch.amp.GradScaler = Scaler\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program, *words[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    records = list(read_records(run / "metrics.jsonl"))
    bad = [h for r in records for h in r.get("histograms", {}).values() if h["num_nan"] + h["num_inf"]]
    assert bad, "no step overflowed: nothing was tried"
    while_training = [record for record in records if record["kind"] != "stage"]
    [file] = wandb_files(run)
    found = wandb_curves(file)
    wanted = wanted_curves(while_training)
    assert_same_curves({name: own for name, own in found.items() if "/block_" not in name}, wanted)
    assert any(name.startswith("nonfinite/histogram_gradient") for name in wanted)
    [kept] = mlflow_curves(run / "mlflow")
    assert_same_curves(
        {name: own for name, own in kept.items() if "/block_" not in name}, wanted_curves(while_training, ranges=True)
    )

    # and either is written again from the records, with the same numbers
    for kind in PACKAGES:
        done = CliRunner().invoke(app, ["track", str(run), "--to", kind, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["records"] == len(records)
    assert_same_curves(wandb_curves(wandb_files(run)[-1]), found)
    assert_same_curves(mlflow_curves(run / "mlflow")[-1], kept)


@pytest.mark.parametrize(("words", "says"), [([], "--to nothing: give"), (["--to", "comet"], "--to comet: give")])
def test_an_unknown_tracker_is_answered_with_those_that_there_are(words: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["track", "latest", *words])
    assert done.exit_code == 2 and f"{says} wandb or mlflow" in " ".join(done.output.split())
