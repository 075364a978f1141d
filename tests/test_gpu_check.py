"""scripts/gpu_check.py: what of it needs no GPU."""

import importlib.util
import json
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shadowlab.bench.step import Loops
from tests import tiny

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.py"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu_minutes(gpu_check: ModuleType) -> ModuleType:
    return sys.modules["scripts.gpu_minutes"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_written(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    before = BENCHMARKS.read_bytes()
    assert gpu_check.main([]) == 0
    assert capsys.readouterr().out == "not measured: no CUDA device\n"
    assert BENCHMARKS.read_bytes() == before


@pytest.mark.parametrize("part", ["minutes", "speed", "options", "stages"])
def test_every_part_has_its_place(gpu_check: ModuleType, tmp_path: Path, part: str) -> None:
    file = tmp_path / "benchmarks.md"
    file.write_bytes(BENCHMARKS.read_bytes())
    gpu_check.write_section(file, f"gpu-{part}", "first")
    gpu_check.write_section(file, f"gpu-{part}", "| a |\nsecond")
    old, new = BENCHMARKS.read_text(), file.read_text()
    start, end = f"<!-- gpu-{part} -->", f"<!-- /gpu-{part} -->"
    assert new.split(start)[0] == old.split(start)[0]
    assert new.split(end)[1] == old.split(end)[1]
    assert new.split(start)[1].split(end)[0] == "\n| a |\nsecond\n"


def test_a_file_without_the_place_is_left_alone(gpu_check: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "benchmarks.md"
    file.write_text("<!-- /gpu-speed --> <!-- gpu-speed -->")
    with pytest.raises(ValueError, match="needs one line `<!-- gpu-speed -->`"):
        gpu_check.write_section(file, "gpu-speed", "figures")
    assert file.read_text() == "<!-- /gpu-speed --> <!-- gpu-speed -->"


def test_tables(gpu_check: ModuleType) -> None:
    row = gpu_check.StepFigures(
        precision="bf16",
        seconds=0.5,
        bare_seconds=0.4,
        unwatched_seconds=0.5,
        statistics_seconds=0.75,
        share_of_chip=0.25,
        peak_gib=41.23,
        planned_gib=40.0,
        synchronisations=Counter({"step.py:90": 1}),
        statistics_synchronisations=Counter({"step.py:90": 1, "statistics.py:200": 2}),
    )
    *_, line = gpu_check.step_table([row]).splitlines()
    assert line == "| bf16 | 0.500 | 1.250 | 1.000 | 1.500 | 25.0% | 41.2 | 40.0 | 1 | 3 |"
    assert gpu_check.synchronisation_lines([row, row]).endswith("statistics.py:200 x 2, step.py:90 x 1.")
    stage = gpu_check.StageFigures("shadowlab overfit", 1, 61.4, {"steps": 20, "passed": False, "error": "a | b"})
    assert gpu_check.stage_table([stage]).splitlines()[-1] == "| `shadowlab overfit` | 1 | 61 | steps 20 |"
    failed = gpu_check.StageFigures("shadowlab overfit", 1, 61.4, {"error": "a | b"})
    assert gpu_check.stage_table([failed]).splitlines()[-1].endswith("| a / b |")


def test_the_plan_is_that_of_a_step(gpu_check: ModuleType, stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """Weights, gradients, two moments and the EMA in float32 at least, and neither VAE nor validation."""
    config = tiny.stage_config(stage_folder, tmp_path)
    unet = tiny.shadow_unet(stage_folder["unet"])
    held = 5 * 4 * sum(p.numel() for p in unet.parameters()) / gpu_check.GIB
    planned = sys.modules["scripts.gpu_measuring"].planned_gib(config)
    assert held < planned < 3 * held


class Clock:
    """Stands still but for what parts take."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def parts(minutes: ModuleType, clock: Clock, taken: dict[str, float], guess: float = 100.0) -> list[Any]:
    """Parts that take so many seconds and note one figure half way."""

    def measure(seconds: float, note: Any, left: float) -> None:
        note("half", 0.5)
        clock.now += seconds

    return [minutes.Part(name, guess, partial(measure, seconds)) for name, seconds in taken.items()]


def test_parts_are_begun_while_there_is_time_for_them(gpu_minutes: ModuleType, tmp_path: Path) -> None:
    """Twice as slow as was guessed: what 100 s were guessed for needs 200 from then on."""
    clock, said = Clock(), list[str]()
    made = parts(gpu_minutes, clock, {"a": 200.0, "b": 100.0, "c": 1.0})
    outcomes = gpu_minutes.measure_parts(made, 450.0, tmp_path / "out", clock=clock, say=said.append)
    assert [outcome.missing for outcome in outcomes] == ["", "", "150 s are left, it takes about 200 s"]
    assert said[0] == "a: half 0.5" and said[2] == "c: not measured: 150 s are left, it takes about 200 s"
    kept = json.loads((tmp_path / "out" / "measured.json").read_text())
    assert [(one["name"], one["figures"]) for one in kept] == [("a", {"half": 0.5}), ("b", {"half": 0.5}), ("c", {})]


def test_what_was_noted_is_on_disk_when_the_machine_goes(gpu_minutes: ModuleType, tmp_path: Path) -> None:
    def cut_off(note: Any, left: float) -> None:
        note("s a step", 1.25)
        raise SystemExit  # nothing after it runs, as on a machine that is taken away

    with pytest.raises(SystemExit):
        gpu_minutes.measure_parts([gpu_minutes.Part("step", 1.0, cut_off)], 60.0, tmp_path, say=lambda line: None)
    [line] = (tmp_path / "measured.jsonl").read_text().splitlines()
    assert json.loads(line) == {"part": "step", "figure": "s a step", "value": 1.25}


def test_a_part_is_stopped_in_time_and_one_that_fails_does_not_end_the_others(
    gpu_minutes: ModuleType, tmp_path: Path
) -> None:
    def fails(note: Any, left: float) -> None:
        raise RuntimeError("CUDA out of memory\nTried to allocate")

    def hangs(note: Any, left: float) -> None:
        note("peak GiB", 3.0)
        time.sleep(30.0)

    made = [gpu_minutes.Part("first", 0.0, fails), gpu_minutes.Part("second", 0.0, hangs)]
    began = time.monotonic()
    first, second = gpu_minutes.measure_parts(made, 0.5, tmp_path, say=lambda line: None)
    assert time.monotonic() - began < 10.0
    assert first.missing == "RuntimeError: CUDA out of memory Tried to allocate"
    assert str(second) == "second: peak GiB 3; not measured: the time is up"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_each_part_says_that_it_was_not_measured(
    gpu_check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = BENCHMARKS.read_bytes()
    assert gpu_check.main(["--minutes", "5", "--record", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"{name}: not measured: no CUDA device" for name in ("step in bf16", "step in fp32", "trip to a verdict")
    ]
    assert all(line.endswith(": not measured: no CUDA device") for line in lines) and len(lines) > 5
    assert BENCHMARKS.read_bytes() == before and not (tmp_path / "out").exists()


def test_the_trip_is_to_the_division_that_was_put_there(
    gpu_check: ModuleType, stage_folder: dict[str, Path], tmp_path: Path
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    figures = gpu_check.trip_figures(Loops(config, tiny.shadow_unet(stage_folder["unet"]), 2, 8))
    assert figures["is right"] and figures["s"] > 0, figures
    assert "born in div, phase forward" in figures["says"]
