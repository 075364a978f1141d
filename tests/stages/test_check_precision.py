"""Which precision holds, and what decides it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.stages.check_precision import check_precision
from shadowlab.stages.check_precision.check_precision import run_check_precision
from shadowlab.stages.result import StageResult
from tests import tiny

ALONE = SingleProcess(torch.device("cpu"))


def checked(stage_folder: dict[str, Path], tmp_path: Path, *words: str) -> tuple[StageResult, dict, list[str]]:
    config = tiny.stage_config(stage_folder, tmp_path, *words)
    run = RunFolder.create(config, "run")
    said: list[str] = []
    reporter = Reporter(active=False)
    reporter.say = lambda text, **style: said.append(text)  # type: ignore[method-assign]
    result = run_check_precision(Session.open(config, run, ALONE, reporter))
    return result, json.loads((run.path / "reports" / "precision.json").read_text()), said


def test_half_weights_alone_do_not_hold(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    result, document, said = checked(stage_folder, tmp_path)
    assert result.passed and result.summary["holds"] == ["fp32", "bf16", "fp16"] == document["holds"]
    assert document["reference"] == "float64"
    found = {report["policy"]: report for report in document["policies"]}
    first, problem = next(iter(found["fp16-pure"]["problems"].items()))
    assert first == "conv_in.weight" and "eps" in problem
    assert any("tf32: not measured" in text for text in said)
    layers = {name: set(report["layers"]) for name, report in found.items()}
    assert len(layers["fp32"]) > 50 and len({frozenset(names) for names in layers.values()}) == 1
    error = {
        name: max(row["activation"]["relative_error"] for row in report["layers"].values())
        for name, report in found.items()
    }
    assert error["fp32"] < 1e-5 < error["fp16"] < error["bf16"] < 0.1
    assert found["fp16"]["gradient_scale"] > 1 == found["bf16"]["gradient_scale"]


def test_the_configured_policy_is_judged(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    words = ("precision=fp16-pure", "allow_unsafe=true")
    result, _, _ = checked(stage_folder, tmp_path, *words)
    assert not result.passed
    assert "--precision fp16-pure does not hold: conv_in.weight" in result.message
    assert "use fp32 or bf16 or fp16" in result.message


def test_updates_that_half_weights_round_away(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """An eps that float16 can hold saves it from NaN; but small steps are less than half a unit of large weights."""
    words = ("optimizer.eps=1e-3", "optimizer.learning_rate=1e-4", "optimizer.warmup_steps=0")
    result, document, _ = checked(stage_folder, tmp_path, *words)
    assert result.passed
    pure = next(report for report in document["policies"] if report["policy"] == "fp16-pure")
    assert any("rounded away" in problem for problem in pure["problems"].values())
    assert not any(update["num_nonfinite"] for update in pure["updates"].values())


@pytest.mark.parametrize(("factor", "words"), [(1e4, "bits below overflow"), (1e8, "NaN or Inf")])
def test_activations_near_overflow(
    factor: float, words: str, stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = check_precision.build_unet

    def louder(*arguments: object) -> nn.Module:
        unet = build(*arguments)
        with torch.no_grad():
            unet.conv_in.weight.mul_(factor)  # the norms behind it take this back
        return unet

    monkeypatch.setattr(check_precision, "build_unet", louder)
    result, document, _ = checked(stage_folder, tmp_path)
    half = next(report for report in document["policies"] if report["policy"] == "fp16")
    assert words in half["problems"]["conv_in"], half["problems"]
    assert "fp16" not in result.summary["holds"] and "bf16" in result.summary["holds"]
