"""scripts/gpu_check.py: what of it needs no GPU."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_written(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    before = BENCHMARKS.read_bytes()
    assert gpu_check.main([]) == 0
    assert capsys.readouterr().out == "not measured: no CUDA device\n"
    assert BENCHMARKS.read_bytes() == before


@pytest.mark.parametrize("part", ["speed", "options", "stages"])
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
    assert held < gpu_check.planned_gib(config) < 3 * held
