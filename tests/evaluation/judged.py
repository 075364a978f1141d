"""A benchmark tar and a small run to judge."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch

from shadowlab.console import Reporter
from shadowlab.distributed import SingleProcess
from shadowlab.evaluation import Evaluated, Question, evaluate
from tests.tasks.shadow.sound import benchmark_sample, make_tar

GOOD = Path(__file__).parents[1] / "old_runs" / "folder"
LIGHTS = {
    "softness_control": [(30, 0, size) for size in (2, 4, 8)],
    "horizontal_direction_control": [(35, 20 * i, 2) for i in range(3)],
    "vertical_direction_control": [(5 + 5 * i, 0, 2) for i in range(2)],
}


def benchmark_members(*, without: str = "") -> dict[str, bytes]:
    """Pictures of noise under the lights of the benchmark's tracks."""
    members: dict[str, bytes] = {}
    for number, (track, lights) in enumerate(LIGHTS.items()):
        for i, (theta, phi, size) in enumerate(lights):
            t, p = math.radians(theta), math.radians(phi)
            place = f"{8 * math.sin(t) * math.cos(p)},{8 * math.sin(t) * math.sin(p)},{8 * math.cos(t)}"
            light = {"theta": theta, "phi": phi, "size": size, "light_location": place}
            if track != without:
                members |= benchmark_sample(f"{track}_{i:03d}", seed=10 * number + i, track=track, **light)
    return members


def make_benchmark(file: Path, *, without: str = "") -> Path:
    return make_tar(file, benchmark_members(without=without))


def small_run(place: Path) -> Path:
    """A folder with `runs/fallen`, of three steps at 32 pixels, and the data set that it was trained on."""
    return Path(shutil.copytree(GOOD, place))


def judged(place: str, out: Path, *, reporter: Reporter | None = None, **asked: Any) -> Evaluated:
    """In this process, quietly; without control, which takes most of the time, unless it is asked for."""
    question, alone = Question(place=place, **{"control_objects": 0, **asked}), SingleProcess(torch.device("cpu"))
    found = evaluate(question, alone, reporter or Reporter(active=False), out=out)
    assert found is not None
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
