"""What train proves before its first step: split, order, checkpoints; and that validation only looks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shadowlab.console.reporter import Reporter
from shadowlab.data import Split, described_split, order_fault, sample_indices, split_by_object, split_fault
from shadowlab.data import proofs as data_proofs
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import StageFailedError
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.stages.train import beginning
from shadowlab.stages.train.beginning import Stream
from shadowlab.stages.train.round_trip import round_trip_fault
from shadowlab.stages.train.untouched import untouched
from shadowlab.training import checkpoint
from shadowlab.training import state as training_state
from tests import tiny

OBJECTS = [f"o{i // 4}" for i in range(32)]


def session_of(output: Path, *assignments: str) -> Session:
    config = tiny.config_of("random", f"output_dir={output}", *assignments)
    alone = SingleProcess(torch.device("cpu"))
    return Session.open(config, RunFolder(output / "run"), alone, Reporter(active=False))


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "assignments",
    [(), ("precision=fp16",), ("train.ema_decay=null",), ('train.trainable=["*.attn1.*"]',)],
    ids=["fp32", "fp16", "no EMA", "few that train"],
)
def test_a_checkpoint_gives_back_what_it_took(tmp_path: Path, assignments: tuple[str, ...]) -> None:
    assert round_trip_fault(session_of(tmp_path, *assignments), tiny.encoded_batch([0, 1])) is None


def lose(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A checkpoint's code that leaves something out."""
    restore, load, state = checkpoint._restore, checkpoint.load_checkpoint, checkpoint.training_state
    calls: list[int] = []

    def some(wanted: Any, parameters: Any, saved: Any) -> None:
        calls.append(1)
        if len(calls) != {"weights": 1, "averages": 2}.get(what):
            restore(wanted, parameters, saved)

    if what in ("weights", "averages"):
        monkeypatch.setattr(checkpoint, "_restore", some)
    elif what == "moments":
        monkeypatch.setattr(checkpoint, "restore_optimizer", lambda *_, **__: None)
    elif what == "position":

        def other(*given: Any, **named: Any) -> Any:
            return load(*given, **named) | {"position": 0}

        monkeypatch.setattr("shadowlab.stages.train.round_trip.load_checkpoint", other)
    elif what == "count of updates":

        def forgetful(path: Any, trainee: Any, **named: Any) -> Any:
            found = load(path, trainee, **named)
            trainee.ema.optimization_step = 0
            return found

        monkeypatch.setattr("shadowlab.stages.train.round_trip.load_checkpoint", forgetful)
    elif what == "averages for weights":

        def exchanged(trainee: Any, **named: Any) -> training_state.TrainingState:
            found = state(trainee, **named)
            found.weights.update(found.averages or {})
            return found

        monkeypatch.setattr(checkpoint, "training_state", exchanged)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights", "load_checkpoint: parameter conv_in.weight is not what was saved"),
        ("averages", "load_checkpoint: EMA of conv_in.weight"),
        ("moments", "load_checkpoint: "),
        ("position", "load_checkpoint: position is 0"),
        ("count of updates", "load_checkpoint: the EMA's count of updates"),
        ("averages for weights", "save_checkpoint: conv_in.weight in unet/"),
    ],
)
def test_what_a_checkpoint_loses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    lose(monkeypatch, what)
    fault = round_trip_fault(session_of(tmp_path), tiny.encoded_batch([0, 1]))
    assert fault is not None and words in fault, fault


def test_it_stops_train_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning, "_PROVEN", [])
    lose(monkeypatch, "weights")
    grid: Any = type("Grid", (), {"encoded": tiny.encoded_batch([0, 1]), "batch": ["a", "b"]})
    with pytest.raises(StageFailedError, match="train failed: .*load_checkpoint"):
        beginning.prove_checkpoints(session_of(tmp_path), grid)


# --- validation ---------------------------------------------------------------------------------------------------


def change(trainee: Any, what: str) -> None:
    first = next(trainee.unet.parameters())
    with torch.no_grad():
        if what == "parameter":
            first.view(-1)[0] += 1e-7
        elif what == "EMA":
            trainee.ema.shadow_params[0].mul_(1.0000001)
        elif what == "gradient":
            first.grad = torch.zeros_like(first)
        elif what == "training mode":
            trainee.unet.mid_block.eval()
        elif what == "random numbers":
            torch.rand(1)
        elif what == "optimizer state":
            next(iter(trainee.optimizer.state.values()))["exp_avg"].view(-1)[0] += 1


@pytest.mark.parametrize(
    "what", ["", "parameter", "EMA", "gradient", "training mode", "random numbers", "optimizer state"]
)
def test_validation_may_only_look(hub_folder: Path, what: str) -> None:
    trainee = tiny.trainee_of(hub_folder)
    trainee.unet.train()
    for parameter in trainee.unet.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    if not what:
        with untouched(trainee, 3), trainee.averaged_weights():
            trainee.unet.eval()
            trainee.unet.train()
        return
    with pytest.raises(StageFailedError, match=f"validation at step 3 changed .*{what}"), untouched(trainee, 3):
        change(trainee, what)


# --- samples ------------------------------------------------------------------------------------------------------


def test_a_sound_split_has_no_fault_and_is_described() -> None:
    split = split_by_object(OBJECTS, 0.25, seed=0)
    assert split_fault(split, OBJECTS, split.validation[:3]) is None
    ids = [f"s{i}" for i in range(32)]
    found = described_split(split, ids, OBJECTS)
    assert (found["train"]["samples"], found["validation"]["objects"]) == (24, 2)
    assert found["validation"]["object_ids"] == sorted({OBJECTS[i] for i in split.validation})
    assert found["train"]["digest"] != found["validation"]["digest"]
    other = described_split(split_by_object(OBJECTS, 0.25, seed=1), ids, OBJECTS)
    assert other["train"]["digest"] != found["train"]["digest"]


@pytest.mark.parametrize(
    ("split", "judged", "words"),
    [
        (Split([*range(28)], [*range(24, 32)]), [], "in training and in validation"),
        (Split([*range(26)], [*range(26, 32)]), [], "object o6"),
        (Split([*range(20)], [*range(24, 32)]), [], "are not the 32 samples"),
        (Split([*range(24), 3], [*range(24, 32)]), [], "more than once"),
        (Split([*range(32)], []), [], "validation has no sample"),
        (Split([*range(24)], [*range(24, 32)]), [2], "validation_grid"),
    ],
)
def test_a_split_that_mixes_is_named(split: Split, judged: list[int], words: str) -> None:
    fault = split_fault(split, OBJECTS, judged)
    assert fault is not None and words in fault


@pytest.mark.parametrize("position", [0, 96, 960])
@pytest.mark.parametrize(("batch", "accumulation", "count"), [(4, 1, 1), (4, 2, 3), (48, 2, 1)])
def test_the_order_of_a_run_has_no_fault(position: int, batch: int, accumulation: int, count: int) -> None:
    step = batch * accumulation * count
    assert order_fault(23, 0, position - position % step, batch, accumulation, count) is None
    assert order_fault(1, 0, 0, batch, accumulation, count) is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [("same order", "have the same order"), ("twice", "more than once"), ("stuck", "read position"), ("ranks", "read")],
)
def test_an_order_that_repeats_is_named(monkeypatch: pytest.MonkeyPatch, fault: str, words: str) -> None:
    original = data_proofs.planned_indices

    def planned(length: int, seed: int, first: int, batch: int, accumulation: int, rank: int, count: int) -> Any:
        rank = 0 if fault == "ranks" else rank
        begin = None
        for own in original(length, seed, first, batch, accumulation, rank, count):
            begin = begin or own
            if fault == "same order":
                own = [(place % length, place) for _, place in own]
            elif fault == "twice":
                own = [(index // 2, place) for index, place in own]
            yield begin if fault == "stuck" else own

    monkeypatch.setattr(data_proofs, "planned_indices", planned)
    found = order_fault(24, 0, 0, 4, 1, 2)
    assert found is not None and words in found


def test_a_batch_of_other_samples_is_named() -> None:
    dataset: Any = type("Data", (), {"ids": [f"s{i}" for i in range(32)], "object_ids": OBJECTS})()
    stream = Stream(dataset, split_by_object(OBJECTS, 0.25, seed=0), seed=0)
    own = [dataset.ids[stream.split.train[i]] for i in sample_indices(8, 4, 24, 0)]
    stream.check_ids(own, [8, 9, 10, 11])
    with pytest.raises(StageFailedError, match="position 9 of the stream is"):
        stream.check_ids([own[0], own[0], *own[2:]], [8, 9, 10, 11])
