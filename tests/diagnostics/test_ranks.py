"""Two gloo processes, a fault on the second: everybody stops, everybody says the same, nothing is kept."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics import Verdict
from tests.diagnostics import ranks

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]
SECONDS = 240
WRAPPERS = ("ddp", "fsdp")
FAULTS: dict[str, dict[str, Any]] = {
    "forward": {"model": "root", "bad": -20.0},
    "backward": {"model": "backward", "bad": -10.0},
    "data": {"model": "plain", "bad": float("nan"), "clip": True},
    "state": {"model": "state"},
    "optimizer": {"model": "half", "bad_step": 0},
    "average": {"model": "average"},
}
# phase, exception, cause, op, module, parameter, source, sample
EXPECTED: dict[str, tuple[Any, ...]] = {
    "forward": ("forward", "invalid", "out_of_domain", "sqrt", "", None, "# root", 2),
    "backward": ("backward", "divide_by_zero", "out_of_domain", "rsqrt", "", None, "# apply", 2),
    "data": ("data", None, "bad_data", None, None, "x", None, 2),
    "state": ("state", None, "bad_state", None, "blocks.1", "blocks.1.weight", None, None),
    "optimizer": ("optimizer", "divide_by_zero", "underflow", "addcdiv", "first", "first.weight", None, None),
    "average": ("ema", None, "bad_scalar", "lerp", "average", "average.weight", "# average", None),
}


def scenes() -> dict[str, dict[str, Any]]:
    first = {"model": "average", "wrapper": "fsdp", "is_explained": True, "bad_step": 0, "bad_rank": None}
    found: dict[str, dict[str, Any]] = {"explained": first}
    for wrapper in WRAPPERS:
        found[f"{wrapper}-healthy"] = {"model": "plain", "wrapper": wrapper, "clip": True, "statistics_every": 2}
        for name, fault in FAULTS.items():
            found[f"{wrapper}-{name}"] = {"wrapper": wrapper, "bad_step": 1, "statistics_every": 2, **fault}
    found["sum"] = {"model": "sum", "wrapper": None, "bad_step": 0}
    return found


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank, what became of each scene. All in one pair of processes: starting them is what takes long."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.spawn(ranks.rank_main, (scenes(), str(folder)), ranks.NUM_RANKS, join=False)
    end = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail(f"the ranks wait for each other: not done after {SECONDS} s")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks.NUM_RANKS)]


def of_scene(reports: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    for report in reports:
        assert name in report, f"an earlier scene crashed: {list(report.items())[-1]}"
        assert "crash" not in report[name], report[name]["crash"]
    return [report[name] for report in reports]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_healthy_run_is_silent_and_bit_identical(reports: list[dict[str, Any]], wrapper: str):
    for report in of_scene(reports, f"{wrapper}-healthy"):
        assert report == {"done": 3, "untouched": True, "raised": False, "identical": True}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_fault_on_one_rank_stops_all_of_them(reports: list[dict[str, Any]], wrapper: str, fault: str):
    found = of_scene(reports, f"{wrapper}-{fault}")
    assert all(report["raised"] and report["untouched"] for report in found)
    step = FAULTS[fault].get("bad_step", 1)
    assert [report["done"] for report in found] == [step, step]
    assert found[0]["verdict"] == found[1]["verdict"]
    verdict = Verdict.from_json(found[0]["verdict"])
    phase, exception, cause, op, module, parameter, mark, sample = EXPECTED[fault]
    seen = (verdict.phase, verdict.exception, verdict.cause, verdict.op, verdict.module, verdict.parameter)
    assert seen == (phase, exception, cause, op, module, parameter), verdict
    assert (verdict.rank, verdict.step, verdict.reproducible) == (0 if fault == "optimizer" else 1, step, True)
    if sample is not None:
        assert verdict.samples == (sample,)
        assert verdict.sample_ids == (f"rank1_{step}_{sample}",)
    if mark is not None:
        assert verdict.source == line_of(mark)


def test_operators_that_dtensor_has_not_met_are_traced(reports: list[dict[str, Any]]):
    """The first scene: DTensor tries each operator on tensors without memory."""
    for report in of_scene(reports, "explained"):
        verdict = Verdict.from_json(report["verdict"])
        seen = (verdict.phase, verdict.cause, verdict.op, verdict.parameter)
        assert seen == ("ema", "bad_scalar", "lerp", "average.weight"), verdict


def test_the_rank_at_fault_writes_the_incident(reports: list[dict[str, Any]]):
    others, own = of_scene(reports, "ddp-forward")
    assert others["incident"] is None
    assert json.loads((Path(own["incident"]) / "verdict.json").read_text()) == own["verdict"]
    run = subprocess.run([sys.executable, Path(own["incident"]) / "repro.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_sum_over_ranks_that_overflows(reports: list[dict[str, Any]]):
    found = of_scene(reports, "sum")
    assert all(report["raised"] and report["untouched"] for report in found)
    verdict = Verdict.from_json(found[0]["verdict"])
    assert (verdict.phase, verdict.exception, verdict.cause) == ("reduce", "overflow", "overflow"), verdict
    assert verdict.source == line_of("# reduce")


def line_of(mark: str) -> str:
    lines = Path(ranks.__file__).read_text().splitlines()
    return f"{ranks.__file__}:{next(i for i, line in enumerate(lines, 1) if line.endswith(mark))}"
