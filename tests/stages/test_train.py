"""train as a stage: the gate before it, what a run leaves, and resuming bit for bit."""

import gc
import json
import math
import os
import shutil
import signal
import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from diagnostics.errors import NonFiniteError
from diagnostics.records.lines import append_record, read_records
from shadowlab.console.reporter import Reporter
from shadowlab.data.sample_set import SampleSet
from shadowlab.data.split import split_by_object
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import InterruptedRunError, StageFailedError, StageStoppedError, UserError
from shadowlab.evaluation.fixed_grid import FixedGrid, GridResult
from shadowlab.interruption import signals
from shadowlab.models.precision import POLICIES
from shadowlab.runs.folder import RunFolder
from shadowlab.runs.listing import list_runs
from shadowlab.runs.lookup import find_run, latest_run
from shadowlab.runs.resume import resumed_config
from shadowlab.session import Session
from shadowlab.settings.schema import Config
from shadowlab.stages.result import StageResult
from shadowlab.stages.run import finish_stage
from shadowlab.stages.train import required, train
from shadowlab.stages.train.required import prove_required_stages
from shadowlab.stages.train.train import run_train
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow import task as shadow_task
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.samples import Sample, collate
from shadowlab.training.checkpoint_files import complete_checkpoints
from shadowlab.training.step import StepOutcome
from shadowlab.training.telemetry import Telemetry
from tests import tiny

ALONE = SingleProcess(torch.device("cpu"))
SHORT = ("train.validate_every=3", "checkpoint.every_steps=2", "train.log_every=1")


def trained(config: Config, name: str, *, resume: bool = False) -> RunFolder:
    run = RunFolder.reopen(config, name) if resume else RunFolder.create(config, name)
    reporter = Reporter(active=False)
    finish_stage("train", Session.open(config, run, ALONE, reporter), lambda session: run_train(session, resume=resume))
    return run


def saved_tensors(run: RunFolder, step: int) -> dict[str, Tensor]:
    folder = run.checkpoints / f"step-{step:08d}"
    return {
        f"{file.relative_to(folder)}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def numbers(run: RunFolder) -> list[dict[str, Any]]:
    """What was measured, without what time and the process decide; each part of a run has a verdict of its own."""
    return [
        {key: value for key, value in record.items() if not key.endswith(("_seconds", "_share", "_gib"))}
        for record in read_records(run.metrics)
        if "step" in record and record["kind"] != "stage"
    ]


# --- one run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """6 steps at a stretch, 12 samples of 6 in training: the stream crosses an epoch."""
    output = tmp_path_factory.mktemp("whole")
    return trained(tiny.stage_config(stage_folder, output, *SHORT, "train.max_steps=6"), "whole")


def test_what_a_run_leaves(whole: RunFolder) -> None:
    assert [path.name for path in sorted(whole.checkpoints.iterdir())] == [f"step-0000000{i}" for i in (2, 4, 6)]
    assert [path.name for path in sorted(whole.samples.iterdir())] == [f"step-0000000{i}.png" for i in (0, 3, 6)]
    assert whole.stages()["train"]["passed"] is True
    assert json.loads((whole.path / "environment.json").read_text())["packages"]["torch"] == torch.__version__
    assert list(whole.tensorboard.iterdir())
    assert not [path for path in whole.path.rglob("*") if path.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"}]


def test_records_are_complete_and_in_order(whole: RunFolder) -> None:
    records = list(read_records(whole.metrics))
    by_kind = {kind: [r["step"] for r in records if r["kind"] == kind] for kind in ("train", "validation")}
    assert by_kind == {"train": [1, 2, 3, 4, 5, 6], "validation": [0, 3, 6]}
    header, *stepped = records
    assert header["kind"] == "header" and header["num_samples"] > 0
    assert header["device"] == "CPU"
    steps = [record["step"] for record in stepped]
    assert steps == sorted(steps)
    assert len(stepped[1]["parameters"]) > 50  # the first step is observed in full


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_resuming_changes_nothing(
    stage_folder: dict[str, Path], tmp_path: Path, whole: RunFolder, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after `stop` steps (0 and 1: before the first checkpoint, 3: between two): weights, EMA, moments and
    records are as if nothing had been."""
    config = tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=6")
    original = Telemetry.step
    done: list[int] = []

    def killed(self: Any, *arguments: Any, **named: Any) -> StepOutcome:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(config, "parts")
    torch.manual_seed(stop)  # global randomness has no say
    parts = trained(config, "parts", resume=True)
    wanted, got = saved_tensors(whole, 6), saved_tensors(parts, 6)
    assert wanted.keys() == got.keys()
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]
    assert numbers(parts) == numbers(whole)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_three_parts_make_the_whole(stage_folder: dict[str, Path], tmp_path: Path, precision: str) -> None:
    """Weights, EMA, moments, scaler, data order and records, bit for bit; TensorBoard's steps only grow."""
    words = (*SHORT, f"precision={precision}", "diagnostics.statistics_every=2")
    whole = trained(tiny.stage_config(stage_folder, tmp_path, *words, "train.max_steps=9"), "whole")
    parts = trained(tiny.stage_config(stage_folder, tmp_path, *words, "train.max_steps=3"), "parts")
    for max_steps in (6, 9):
        longer = resumed_config(parts, source=None, options={"train.max_steps": max_steps}, assignments=[])
        trained(longer, "parts", resume=True)
    wanted, got = saved_tensors(whole, 9), saved_tensors(parts, 9)
    assert wanted.keys() == got.keys()
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]
    states = [json.loads((r.checkpoints / "step-00000009" / "state.json").read_text()) for r in (whole, parts)]
    assert states[0] == states[1]
    assert (states[0]["scaler"] is None) == (precision == "fp32")
    assert numbers(parts) == numbers(whole)
    events = EventAccumulator(str(parts.tensorboard), size_guidance={"scalars": 0}).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["train/loss"] == list(range(1, 10))
    assert not [tag for tag, found in steps.items() if found != sorted(set(found))]


def test_a_longer_run_is_the_shorter_one_continued(
    stage_folder: dict[str, Path], tmp_path: Path, whole: RunFolder
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=4")
    run = trained(config, "run")
    longer = resumed_config(run, source=None, options={"train.max_steps": 6}, assignments=[])
    trained(longer, "run", resume=True)
    wanted, got = saved_tensors(whole, 6), saved_tensors(run, 6)
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]


def test_a_damaged_newest_checkpoint_costs_its_steps_only(
    stage_folder: dict[str, Path], tmp_path: Path, whole: RunFolder
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=4")
    run = trained(config, "run")
    file = run.checkpoints / "step-00000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    longer = resumed_config(run, source=None, options={"train.max_steps": 6}, assignments=[])
    trained(longer, "run", resume=True)
    wanted, got = saved_tensors(whole, 6), saved_tensors(run, 6)
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]


@pytest.mark.parametrize("name", ["effective batch", "data", "model"])
def test_another_run_is_not_resumed(stage_folder: dict[str, Path], tmp_path: Path, name: str) -> None:
    """The words of the configuration are the same; what they lead to is not."""
    folders = dict(stage_folder)
    for part in ("data", "unet"):
        folders[part] = Path(shutil.copytree(stage_folder[part], tmp_path / part))
    config = tiny.stage_config(folders, tmp_path / "runs", *SHORT, "train.max_steps=2")
    run = trained(config, "run")
    words = {"train.max_steps": 4}
    if name == "effective batch":
        words["train.batch_size"] = 1
    elif name == "data":
        metadata = folders["data"] / "metadata.json"
        metadata.write_text(metadata.read_text().replace("15.0", "16.0"))
    else:
        tiny.save_hub_unet(folders["unet"], norm_eps=1e-6)
    longer = resumed_config(run, source=None, options=words, assignments=[])
    with pytest.raises(UserError, match=rf"--resume: {name} was .* and is .* now"):
        trained(longer, "run", resume=True)


def test_batch_and_accumulation_may_be_exchanged(
    stage_folder: dict[str, Path], tmp_path: Path, whole: RunFolder
) -> None:
    """2 x 1 goes on as 1 x 2: the same samples with the same noise, sums in another order."""
    run = trained(tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=4"), "run")
    words = {"train.max_steps": 6, "train.batch_size": 1, "train.gradient_accumulation_steps": 2}
    trained(resumed_config(run, source=None, options=words, assignments=[]), "run", resume=True)
    losses = [[r["loss"] for r in read_records(r.metrics) if r["kind"] == "train"] for r in (whole, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_nothing_to_resume(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    with pytest.raises(UserError, match="is not a run folder"):
        trained(config, "absent", resume=True)
    run = RunFolder.create(config, "damaged")
    (run.checkpoints / "step-00000002").mkdir()
    with pytest.raises(UserError, match="has no complete checkpoint to resume from"):
        trained(config, "damaged", resume=True)


def test_a_finished_run_is_left_alone(whole: RunFolder) -> None:
    def state() -> tuple[Any, ...]:
        times = [path.stat().st_mtime_ns for path in whole.checkpoints.rglob("*")]
        return whole.metrics.read_bytes(), (whole.path / "stages.json").read_bytes(), times

    before = state()
    trained(whole.saved_config(), whole.path.name, resume=True)
    assert state() == before
    assert "first_validation_loss" in whole.stages()["train"]["summary"]


def test_a_folder_with_results_is_not_used_again(whole: RunFolder) -> None:
    with pytest.raises(UserError, match=r"holds results already.*--resume"):
        RunFolder.create(whole.saved_config(), whole.path.name)


@pytest.mark.parametrize("field", ["data", "parameter"])
def test_a_failure_keeps_the_last_good_checkpoint(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    original = Telemetry.step

    def spoiled(self: Any, batches: Any, place: Any, **named: Any) -> StepOutcome:
        if place.step == 4:
            if field == "data":
                batches[0].data[1] = float("nan")
            else:
                self._trainee.unet.conv_out.bias.data[0] = float("nan")
        return original(self, batches, place, **named)

    monkeypatch.setattr(Telemetry, "step", spoiled)
    config = tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=6")
    with pytest.raises(NonFiniteError) as caught:
        trained(config, "run")
    run = RunFolder(tmp_path / "run")
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-00000002", "step-00000004"]
    assert run.stages()["train"]["passed"] is False
    incident = run.path / "incidents" / "step-00000005"
    assert str(caught.value).startswith((incident / "verdict.txt").read_text().strip())
    assert ("img_" in str(caught.value)) == (field == "data")
    assert [record["kind"] for record in read_records(run.metrics)][-2:] == ["incident", "stage"]


def test_weights_spoiled_by_the_last_step_are_not_saved(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW can turn good gradients into bad weights: no next step notices, so the checkpoint must."""
    original = Telemetry.step

    def spoiled(self: Any, batches: Any, place: Any, **named: Any) -> StepOutcome:
        outcome = original(self, batches, place, **named)
        if place.step == 3:
            self._trainee.unet.conv_out.bias.data[0] = float("inf")
        return outcome

    monkeypatch.setattr(Telemetry, "step", spoiled)
    config = tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=4")
    with pytest.raises(StageFailedError, match=r"step 4: parameter conv_out\.bias is not finite"):
        trained(config, "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_validation_leaves_the_weights_alone(stage_folder: dict[str, Path], tmp_path: Path, whole: RunFolder) -> None:
    words = (*SHORT, "train.max_steps=6", "train.validate_every=1", "diagnostics.statistics_every=0")
    run = trained(tiny.stage_config(stage_folder, tmp_path, *words), "run")
    wanted, got = saved_tensors(whole, 6), saved_tensors(run, 6)
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]


# --- what is trained on and what is judged ------------------------------------------------------------------------


class _Recording:
    """A data set that notes whose pictures are read."""

    def __init__(self, inner: SampleSet[Any]) -> None:
        self.inner, self.read = inner, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Sample:
        self.read.append(i)
        return self.inner[i]


def test_held_out_objects_judge_the_averaged_weights(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of whole epochs: every object that training may see is seen, and none of those that judge."""
    datasets: list[_Recording] = []

    def recording(*arguments: Any) -> Any:
        datasets.append(_Recording(open_dataset(*arguments)))
        return datasets[0]

    monkeypatch.setattr(shadow_task, "open_dataset", recording)
    words = ("train.batch_size=8", "train.max_steps=2", "optimizer.learning_rate=1e-2", "optimizer.warmup_steps=0")
    config = tiny.stage_config(stage_folder, tmp_path, *words)
    run = trained(config, "run")

    dataset = datasets[0]
    split = split_by_object(dataset.object_ids, config.data.validation_fraction, config.seed)
    for_grid, for_steps = dataset.read[:2], dataset.read[2:]  # validation.num_samples=2, then the loader
    objects = [{dataset.object_ids[i] for i in part} for part in (for_grid, for_steps)]
    assert objects[0] == {dataset.object_ids[i] for i in split.validation}
    assert objects[1] == {dataset.object_ids[i] for i in split.train}
    assert not objects[0] & objects[1]

    grid = FixedGrid(
        open_task(config, torch.device("cpu")),
        collate([dataset[i] for i in for_grid]),
        timesteps=config.validation.timesteps,
        num_noises=config.validation.num_noises,
        seed=config.seed,
        chunk=8,
    )
    losses = {
        part: grid.evaluate(tiny.shadow_unet(run.checkpoints / "step-00000002" / part), POLICIES["fp32"]).loss
        for part in ("ema", "unet")
    }
    recorded = [r["loss"] for r in read_records(run.metrics) if r["kind"] == "validation"]
    assert recorded[-1] == pytest.approx(losses["ema"], rel=1e-5)
    assert abs(losses["unet"] - losses["ema"]) > 1e-3 * losses["ema"]  # or the line above would prove nothing


@pytest.mark.parametrize("what", ["loss", "prediction"])
def test_a_validation_that_is_not_finite_fails(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The training loss may be finite where the averaged weights are not: NaN is no smaller than anything."""
    original = FixedGrid.evaluate

    def spoiled(self: FixedGrid, *arguments: Any) -> GridResult:
        result = original(self, *arguments)
        if what == "loss":
            return replace(result, loss=math.nan, loss_by_t={**result.loss_by_t, 0.5: math.nan})
        result.prediction[1, 0, 3, 3] = math.nan
        return result

    config = tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=3")
    monkeypatch.setattr(FixedGrid, "evaluate", spoiled)
    with pytest.raises(StageFailedError, match="validation at step 0") as caught:
        trained(config, "run")
    assert caught.value.exit_code == 1
    assert ("grid loss at t = 0.5 is nan" if what == "loss" else "prediction for img_") in str(caught.value)
    assert RunFolder(tmp_path / "run").stages()["train"]["passed"] is False
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_validation_that_is_not_finite_costs_no_checkpoint(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that of its step nor the one before, which a user may have to go back to."""
    original = FixedGrid.evaluate

    def spoiled(self: FixedGrid, *arguments: Any) -> GridResult:
        result = original(self, *arguments)
        return replace(result, loss=math.nan, loss_by_t={0.5: math.nan}) if len(done) > 1 else result

    done: list[int] = []
    validate = train.validate
    monkeypatch.setattr(train, "validate", lambda *words, **named: (done.append(1), validate(*words, **named))[1])
    monkeypatch.setattr(FixedGrid, "evaluate", spoiled)
    words = ("train.validate_every=4", "checkpoint.every_steps=2", "checkpoint.keep_last=1", "train.max_steps=6")
    with pytest.raises(StageFailedError, match="validation at step 4: .* nan.*move the checkpoint of step 4 away"):
        trained(tiny.stage_config(stage_folder, tmp_path, *words), "run")
    run = RunFolder(tmp_path / "run")
    assert [path.name for path in complete_checkpoints(run.checkpoints)] == ["step-00000002", "step-00000004"]
    monkeypatch.undo()
    shutil.rmtree(run.checkpoints / "step-00000004")
    slower = resumed_config(run, source=None, options={"optimizer.learning_rate": 1e-6}, assignments=[])
    trained(slower, "run", resume=True)
    assert run.stages()["train"]["passed"] is True
    assert [path.name for path in complete_checkpoints(run.checkpoints)] == ["step-00000006"]


@pytest.mark.parametrize("killed_at", [3, 6])
def test_a_validation_that_a_kill_prevented_is_made_up_for_once(
    stage_folder: dict[str, Path], tmp_path: Path, whole: RunFolder, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """The checkpoint of its step is there before it; at step 6, which is the last, nothing else is left to do."""
    validate = train.validate

    def killed(session: Any, grid: Any, trainee: Any, telemetry: Any, step: int, **named: Any) -> GridResult:
        if step == killed_at:
            raise KeyboardInterrupt
        return validate(session, grid, trainee, telemetry, step, **named)

    words = (*SHORT, "checkpoint.every_steps=1", "train.max_steps=6")
    config = tiny.stage_config(stage_folder, tmp_path, *words)
    with monkeypatch.context() as patch:
        patch.setattr(train, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(config, "parts")
    assert complete_checkpoints(tmp_path / "parts" / "checkpoints")[-1].name == f"step-0000000{killed_at}"
    for _ in range(2):  # a second resume has nothing to do
        parts = trained(config, "parts", resume=True)
        assert numbers(parts) == numbers(whole)
        assert parts.stages()["train"]["passed"] is True
    wanted, got = saved_tensors(whole, 6), saved_tensors(parts, 6)
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]


@pytest.mark.parametrize("asked_in", ["step", "validation"])
def test_a_stop_at_the_step_of_a_validation(
    stage_folder: dict[str, Path], tmp_path: Path, whole: RunFolder, monkeypatch: pytest.MonkeyPatch, asked_in: str
) -> None:
    """Nobody who asked to stop waits for a validation, and its record comes all the same."""
    config = tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=6")
    owner, name = (Telemetry, "step") if asked_in == "step" else (train, "validate")
    original, calls = getattr(owner, name), []

    def asking(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        result = original(*arguments, **named)
        if len(calls) == (3 if asked_in == "step" else 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, asking)
        with signals.heard(), pytest.raises(InterruptedRunError, match="interrupted after step 3: saved"):
            trained(config, "parts")
    assert complete_checkpoints(tmp_path / "parts" / "checkpoints")[-1].name == "step-00000003"
    assert ("validation", 3) not in kinds(RunFolder(tmp_path / "parts")) or asked_in == "validation"
    with signals.heard():  # a process of its own
        parts = trained(config, "parts", resume=True)
    assert numbers(parts) == numbers(whole)


def kinds(run: RunFolder) -> list[tuple[Any, Any]]:
    return [(record["kind"], record.get("step")) for record in read_records(run.metrics)]


def test_another_learning_rate_on_resume_is_said_recorded_and_kept(
    stage_folder: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=4", "optimizer.warmup_steps=0")
    run = trained(config, "run")
    slower = resumed_config(
        run, source=None, options={"optimizer.learning_rate": 1e-7, "train.max_steps": 6}, assignments=[]
    )
    capsys.readouterr()
    with closing(Reporter()) as reporter:
        session = Session.open(slower, run, ALONE, reporter)
        finish_stage("train", session, lambda session: run_train(session, resume=True))
    said = capsys.readouterr().out.splitlines()
    assert "changed on resume: optimizer.learning_rate 0.001 -> 1e-07" in said
    assert "the learning rate of step 5 is 1e-07; it would have been 0.001" in said
    records = list(read_records(run.metrics))
    assert [r["learning_rate"] for r in records if r["kind"] == "train"] == [1e-3] * 4 + [1e-7] * 2
    headers = [r for r in records if r["kind"] == "header"]
    assert "changed" not in headers[0] and headers[1]["resumed_at"] == 4
    assert "optimizer.learning_rate 0.001 -> 1e-07" in headers[1]["changed"]
    assert run.saved_config().optimizer.learning_rate == 1e-7
    before, after = (
        saved_tensors(run, step)["unet/diffusion_pytorch_model.safetensors/conv_out.bias"] for step in (4, 6)
    )
    assert 0 < (after - before).abs().max() < 1e-6  # AdamW moves a weight by about the rate, in two steps


def test_a_damaged_record_is_named_on_resume(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    run = trained(tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=2"), "run")
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(b"".join([lines[0], b"\x00 no json\n", *lines[2:]]))
    longer = resumed_config(run, source=None, options={"train.max_steps": 4}, assignments=[])
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a JSON record") as caught:
        trained(longer, "run", resume=True)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert run.saved_config().train.max_steps == 2  # a refused resume changes nothing


def test_a_changed_option_is_reported_on_resume(
    stage_folder: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tiny.stage_config(stage_folder, tmp_path, *SHORT, "train.max_steps=2"), "run")
    longer = resumed_config(run, source=None, options={"train.max_steps": 3}, assignments=[])
    run_train(Session.open(longer, run, ALONE, Reporter()), resume=True)
    assert "changed on resume: train.max_steps 2 -> 3" in capsys.readouterr().out.splitlines()
    assert run.saved_config() == longer


def test_a_sample_that_breaks_during_the_run_stops_the_stage(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """Exit 2, and stages.json tells of it: the run had begun."""
    folders = {**stage_folder, "data": Path(shutil.copytree(stage_folder["data"], tmp_path / "data"))}
    config = tiny.stage_config(folders, tmp_path / "runs", *SHORT, "train.max_steps=6")
    dataset = open_dataset(folders["data"], tiny.SIDE * 8)
    victim = dataset.ids[split_by_object(dataset.object_ids, config.data.validation_fraction, config.seed).train[0]]
    file = folders["data"] / "shadows" / f"{victim}.png"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StageStoppedError, match=rf"step \d: {victim}") as caught:
        trained(config, "run")
    assert caught.value.exit_code == 2
    assert victim in RunFolder(tmp_path / "runs" / "run").stages()["train"]["summary"]["error"]


# --- the gate ----------------------------------------------------------------------------------------------------


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for the two stages: `passes` decides, `ran` counts."""
    state: dict[str, Any] = {"ran": [], "passes": {"check-forward": True, "overfit": True}}

    def stage(name: str) -> Any:
        def run(*_: Any) -> StageResult:
            state["ran"].append(name)
            summary = {"criterion": {"r2": 0.95, "soft_iou": 0.8, "num_samples": 2}}
            return StageResult(name, state["passes"][name], summary, f"{name} failed: look there")

        return run

    monkeypatch.setattr(required, "REQUIRED_STAGES", {name: stage(name) for name in state["passes"]})
    return state


def prove(config: Config, name: str, *, skip: bool = False) -> RunFolder:
    run = RunFolder.create(config, name)
    prove_required_stages(Session.open(config, run, ALONE, Reporter(active=False)), skip=skip)
    return run


def test_missing_stages_run_once_per_model(
    stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any]
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    prove(config, "first")
    assert stages["ran"] == ["check-forward", "overfit"]
    prove(tiny.stage_config(stage_folder, tmp_path, "seed=5", "train.max_steps=7"), "second")
    assert stages["ran"] == ["check-forward", "overfit"]
    prove(tiny.stage_config(stage_folder, tmp_path, "precision=bf16"), "third")
    assert stages["ran"] == ["check-forward", "overfit"] * 2


def test_one_command_makes_one_folder(stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any]) -> None:
    """What it ran before lies inside, and is found there: as a proof, by its name, and as a note of the training."""
    run = prove(tiny.stage_config(stage_folder, tmp_path), "first")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    notes = json.loads((run.path / "required-stages.json").read_text())
    assert notes == {name: str(run.path / "required" / name) for name in ("check-forward", "overfit")}
    second = prove(tiny.stage_config(stage_folder, tmp_path), "second")
    assert json.loads((second.path / "required-stages.json").read_text()) == notes
    found = find_run("first/required/overfit", str(tmp_path), with_records=False)
    assert found.path == run.path / "required" / "overfit"
    listed = [(one.path.relative_to(tmp_path).as_posix(), one.state) for one in list_runs(tmp_path)]
    assert ("first/required/overfit", "passed") in listed
    assert listed.index(("first/required/check-forward", "passed")) == [name for name, _ in listed].index("first") + 1
    assert latest_run(tmp_path) in (run.path, second.path)


def test_the_layout_of_before_still_proves(
    stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any]
) -> None:
    run = prove(tiny.stage_config(stage_folder, tmp_path), "first")
    for name in ("check-forward", "overfit"):
        (run.path / "required" / name).rename(tmp_path / f"first-{name}")
    second = prove(tiny.stage_config(stage_folder, tmp_path), "second")
    assert stages["ran"] == ["check-forward", "overfit"]
    notes = json.loads((second.path / "required-stages.json").read_text())
    assert notes["overfit"] == str(tmp_path / "first-overfit")


@pytest.mark.parametrize("noted", [True, False])
def test_a_check_of_a_users_own_picture_is_no_proof(
    stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any], noted: bool
) -> None:
    """Earlier versions noted the command alone."""
    config = tiny.stage_config(stage_folder, tmp_path)
    run = RunFolder.create(config, "photo")
    summary = {"sample": "chair", "own_input": True} if noted else {"sample": "chair"}
    run.record_stage("check-forward", passed=True, config=config, summary=summary)
    environment = json.loads((run.path / "environment.json").read_text())
    environment["command"] = ["check-forward", "--object", "chair.png"]
    (run.path / "environment.json").write_text(json.dumps(environment))
    prove(config, "first")
    assert stages["ran"] == ["check-forward", "overfit"]
    run.record_stage("check-forward", passed=True, config=config, summary={"sample": "img_0", "own_input": False})
    shutil.rmtree(tmp_path / "first" / "required" / "check-forward")
    prove(config, "second")
    assert stages["ran"] == ["check-forward", "overfit"]


def test_a_stage_that_was_interrupted_is_replaced(
    stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)

    def interrupted(session: Session) -> StageResult:
        append_record(session.run.metrics, {"kind": "overfit", "step": 3, "loss": 1.0})
        raise KeyboardInterrupt

    good = dict(required.REQUIRED_STAGES)
    monkeypatch.setattr(required, "REQUIRED_STAGES", {**good, "overfit": interrupted})
    with pytest.raises(KeyboardInterrupt):
        prove(config, "run")
    monkeypatch.setattr(required, "REQUIRED_STAGES", good)
    run = RunFolder.reopen(config, "run")
    prove_required_stages(Session.open(config, run, ALONE, Reporter(active=False)), skip=False)
    assert sorted(path.name for path in (run.path / "required").iterdir()) == ["check-forward", "overfit"]
    assert stages["ran"] == ["check-forward", "overfit"]


def test_a_required_stage_takes_its_vae_with_it(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    run, reporter = RunFolder.create(config, "run"), Reporter(active=False)
    session = Session.open(config, run, ALONE, reporter)
    inner = session.alone(run, reporter)
    inner.task.load_vae(torch.device("cpu"))
    vae = weakref.ref(inner.task.vae)
    del inner
    gc.collect()
    assert vae() is None


def test_a_weaker_proof_is_none(stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any]) -> None:
    prove(tiny.stage_config(stage_folder, tmp_path), "first")
    prove(tiny.stage_config(stage_folder, tmp_path, "overfit.num_samples=1", "overfit.min_r2=0.5"), "easier")
    assert stages["ran"] == ["check-forward", "overfit"]
    prove(tiny.stage_config(stage_folder, tmp_path, "overfit.num_samples=3"), "harder")
    assert stages["ran"] == ["check-forward", "overfit", "overfit"]


def test_a_proof_without_its_criterion_is_none(
    stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any]
) -> None:
    """Written by an earlier version: the stage runs again, without a traceback."""
    config = tiny.stage_config(stage_folder, tmp_path)
    prove(config, "first")
    file = tmp_path / "first" / "required" / "overfit" / "stages.json"
    old = json.loads(file.read_text())
    del old["overfit"]["summary"]["criterion"]
    file.write_text(json.dumps(old))
    prove(config, "second")
    assert stages["ran"] == ["check-forward", "overfit", "overfit"]


def test_the_first_failing_stage_stops(stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any]) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    stages["passes"]["check-forward"] = False
    with pytest.raises(StageFailedError, match="check-forward failed: look there"):
        prove(config, "first")
    assert stages["ran"] == ["check-forward"]
    stages["passes"] = {"check-forward": True, "overfit": False}
    with pytest.raises(StageFailedError, match="overfit failed"):
        prove(config, "second")
    stages["passes"]["overfit"] = True
    prove(config, "third")  # the failed one is asked again, the passed one is not
    assert stages["ran"] == ["check-forward", "check-forward", "overfit", "overfit"]


def test_the_real_first_stage_stops_a_vae_that_was_never_trained(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match="VAE gives the shadow map back: expected PSNR >= 20 dB"):
        prove(tiny.stage_config(stage_folder, tmp_path), "run")
    required = tmp_path / "run" / "required"
    assert RunFolder(required / "check-forward").stages()["check-forward"]["passed"] is False
    assert not (required / "overfit").exists()


def test_skipping_is_loud(
    stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    prove_required_stages(Session.open(config, RunFolder.create(config, "run"), ALONE, Reporter()), skip=True)
    assert stages["ran"] == []
    assert "warning: --skip-stages: check-forward and overfit are not asked for" in capsys.readouterr().out


DAMAGE = {
    "not JSON": "{",
    "not UTF-8": b"\xff\xfe",
    "nested": "[" * 100_000,
    "a list": "[]",
    "an entry that is none": '{"overfit": 5}',
    "missing keys": '{"overfit": {"passed": true}}',
    "wrong types": '{"overfit": {"passed": "yes", "model_hash": 1, "finished": null, "summary": []}}',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_neighbour_proves_nothing_and_blocks_nothing(
    stage_folder: dict[str, Path],
    tmp_path: Path,
    stages: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    prove(config, "first")
    damaged(tmp_path / "first" / "required" / "overfit" / "stages.json", damage)
    prove_required_stages(Session.open(config, RunFolder.create(config, "second"), ALONE, Reporter()), skip=False)
    assert stages["ran"] == ["check-forward", "overfit", "overfit"]
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1  # not once a stage
    assert (
        "proves nothing" in warnings[0]
        and str(tmp_path / "first" / "required" / "overfit" / "stages.json") in warnings[0]
    )


@pytest.mark.parametrize("criterion", [[], {"r2": "0.99", "soft_iou": 1, "num_samples": 99}])
def test_a_criterion_of_a_wrong_type_proves_nothing(
    stage_folder: dict[str, Path], tmp_path: Path, stages: dict[str, Any], criterion: Any
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    prove(config, "first")
    file = tmp_path / "first" / "required" / "overfit" / "stages.json"
    old = json.loads(file.read_text())
    old["overfit"]["summary"]["criterion"] = criterion
    file.write_text(json.dumps(old))
    prove(config, "second")
    assert stages["ran"] == ["check-forward", "overfit", "overfit"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_its_own_damaged_file_is_reported_before_anything_runs(
    stage_folder: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    damaged(RunFolder.create(config, "run").path / "stages.json", damage)
    with pytest.raises(UserError, match=r"run.stages\.json: .*; remove the file to run the stages again") as caught:
        RunFolder.reopen(config, "run")
    assert "\n" not in str(caught.value)


def damaged(file: Path, damage: str) -> None:
    content = DAMAGE[damage]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_failed_stage_gives_one_json_document(
    stage_folder: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    run, failure = RunFolder.create(config, "run"), StageResult("overfit", False, {"steps": 2}, "look there")
    with closing(Reporter(as_json=True)) as reporter, pytest.raises(StageFailedError) as caught:
        finish_stage("overfit", Session.open(config, run, ALONE, reporter), lambda _: failure)
    document = json.loads(capsys.readouterr().out)
    assert (document["passed"], document["error"], document["steps"]) == (False, "look there", 2)
    assert caught.value.reported  # so the command line adds none
