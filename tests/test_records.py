"""Every key that a run writes is described in diagnostics/records/kinds.py, and what is described is written."""

import dataclasses
import math
import types
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from diagnostics.records.document import KINDS, PARTS
from diagnostics.records.kinds import OPEN_KEYS, Evaluation, Health, Incident, Kinds, TrainingStep
from diagnostics.records.lines import RecordWriter, read_records
from shadowlab.runs.folder import RunFolder
from shadowlab.tasks.shadow.charts import CHARTS
from shadowlab.training.step import StepPlace
from shadowlab.training.telemetry import Telemetry
from tests import tiny

Found = dict[type, list[dict[str, Any]]]


def type_of(record: dict[str, Any], kinds: Kinds) -> type:
    kind = kinds.learn(record)
    return KINDS.get(kind) or (Evaluation if kinds.is_evaluation(kind) else TrainingStep)


def misfits(value: Any, hint: Any, place: str) -> Iterator[str]:
    """Places in a JSON value that a type does not describe."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        if not any(not list(misfits(value, one, place)) for one in get_args(hint)):
            yield f"{place}: {value!r} is not {hint}"
    elif hint is Any:
        return
    elif get_origin(hint) is dict:
        for key, item in value.items() if isinstance(value, dict) else [("?", None)]:
            yield from misfits(item, get_args(hint)[1], f"{place}.{key}")
    elif get_origin(hint) in (list, tuple):
        for item in value if isinstance(value, list) else [None]:
            yield from misfits(item, get_args(hint)[0], f"{place}[]")
    elif is_typeddict(hint) or dataclasses.is_dataclass(hint):
        yield from keys_unknown(value, hint, place)
    elif not isinstance(value, (int, float) if hint is float else hint) or isinstance(value, bool) != (hint is bool):
        yield f"{place}: {value!r} is not {hint}"


def keys_unknown(value: dict[str, Any], kind: type, place: str) -> Iterator[str]:
    hints = get_type_hints(kind, include_extras=True)
    for key, item in value.items():
        if key in hints:
            yield from misfits(item, hints[key], f"{place}.{key}")
            for inner in innermost(item, hints[key]) if (kind, key) in PARTS else ():
                yield from keys_unknown(inner, PARTS[kind, key], f"{place}.{key}")
        elif not any(fnmatch(key, one.pattern) for one in OPEN_KEYS.get(kind, ()) if kind is Evaluation):
            yield f"{place}.{key}"
        else:
            yield from misfits(item, float, f"{place}.{key}")


def innermost(value: Any, hint: Any) -> Iterator[dict[str, Any]]:
    """Of objects and lists in each other, the objects whose keys are names of a type."""
    of_objects = get_origin(hint) is dict and get_origin(get_args(hint)[1]) is dict
    if not isinstance(value, dict | list):
        return
    if of_objects or get_origin(hint) is list:
        for item in value.values() if isinstance(value, dict) else value:
            yield from innermost(item, get_args(hint)[-1])
    elif isinstance(value, dict):
        yield value


def read(metrics: Path) -> Found:
    """By type."""
    kinds, found = Kinds(), {}
    for record in read_records(metrics):
        found.setdefault(type_of(record, kinds), []).append(record)
    return found


def undescribed(found: Found) -> list[str]:
    return [place for kind, own in found.items() for one in own for place in keys_unknown(one, kind, kind.__name__)]


@pytest.fixture(scope="module")
def sound(board_run: Path) -> Found:
    """Statistics in every step, histograms, evaluations, a resume."""
    return read(board_run / "metrics.jsonl")


@pytest.fixture(scope="module")
def fallen(seed_fp16: tuple[str, Path]) -> Found:
    """A NaN in the first step of an overfit in float16."""
    files = (seed_fp16[1] / "runs").rglob("metrics.jsonl")
    return next(found for file in files if Incident in (found := read(file)))


@pytest.fixture(scope="module")
def scaled(hub_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A step under a gradient scaler, after many that it skipped: the health rules have something to say."""
    config = tiny.config_of(hub_folder, f"output_dir={tmp_path_factory.mktemp('scaled')}")
    run = RunFolder.create(config, "run")
    writer = RecordWriter(run.metrics)
    for step in range(1, 11):
        writer.write({"kind": "train", "step": step, "loss": 1.0, "grad_norm": math.inf, "skipped": True})
    writer.close()
    trainee = tiny.trainee_of(hub_folder, "precision=fp16", "diagnostics.statistics_every=1")
    observed = Telemetry(run, trainee, config.diagnostics, kind="train", resumed_at=10)
    observed.step([tiny.encoded_batch(range(20, 22))], StepPlace(10, 20, 2))
    observed.close()
    return read(run.metrics)


def test_every_key_that_a_run_writes_is_described(sound: Found, fallen: Found, scaled: Found) -> None:
    assert undescribed(sound) == undescribed(fallen) == undescribed(scaled) == []


def test_every_key_that_is_described_is_written(sound: Found, fallen: Found, scaled: Found) -> None:
    assert scaled[Health] and fallen[Incident]
    for title, kind in KINDS.items():
        written = {key for run in (sound, fallen, scaled) for record in run.get(kind, []) for key in record}
        # No run here augments, or starts from another.
        absent = {"step", "augmentation", "start"} if title == "header" else set()
        assert set(get_type_hints(kind)) - written <= absent, title


def test_the_numbers_of_a_task_are_those_of_its_charts(sound: Found) -> None:
    """What stands next to the described keys of an evaluation."""
    named = [one.pattern for one in OPEN_KEYS[Evaluation] if one.pattern != "*"]
    keys = {key for record in sound[Evaluation] for key in record} - set(get_type_hints(Evaluation))
    own = {key for key in keys if not any(fnmatch(key, pattern) for pattern in named)}
    assert own >= {"soft_iou", "rmse", "black_soft_iou", "black_rmse"}
    assert {curve.key for chart in CHARTS for curve in chart.curves} <= keys | {"r2"}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"weather": 1.0}, "TrainingStep.weather"),
        ({"loss": "low"}, "TrainingStep.loss: 'low'"),
        ({"skipped": 0}, "TrainingStep.skipped: 0"),
        ({"samples": [1]}, "TrainingStep.samples[]: 1"),
        ({"layers": {"conv": {"activation": {"median": 1.0}}}}, "TrainingStep.layers.median"),
        ({"parameters": {"w": {"gradient_norm": None, "update_ratio": "none"}}}, "TrainingStep.parameters.w"),
    ],
)
def test_a_key_that_is_not_described_is_found(change: dict[str, Any], place: str) -> None:
    [found] = list(keys_unknown({"kind": "train", "step": 1, **change}, TrainingStep, "TrainingStep"))[:1]
    assert found.startswith(place)
