"""scripts/compare_runs.py: equal folders are equal, and each thing that differs is named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from scripts.compare_runs import compare, main
from tests.old_runs.make import FOLDER


def change_a_moment(folder: Path) -> None:
    file = folder / "runs/fallen/checkpoints/step-00000003/optimizer.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias/exp_avg"][0] += 1e-7
    save_file(tensors, file)


def change_a_latent(folder: Path) -> None:
    file = next((folder / "latents").rglob("*.safetensors"))
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)


def change_a_record(folder: Path) -> None:
    file = folder / "runs/fallen/metrics.jsonl"
    lines = file.read_text().splitlines()
    step = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "train")
    lines[step] = json.dumps(json.loads(lines[step]) | {"step_seconds": 99.0, "loss": 0.5, "young": 1})
    file.write_text("\n".join(lines) + "\n")


def change_a_verdict(folder: Path) -> None:
    file = folder / "runs/half/incidents/step-00000001/verdict.txt"
    file.write_text(file.read_text().replace("/opt/shadowlab/", "/elsewhere/").replace("phase optimizer", "phase ema"))


def lose_a_file(folder: Path) -> None:
    (folder / "runs/half/metrics.jsonl").unlink()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            change_a_moment,
            [r"optimizer\.safetensors: 1 of 546 tensors differ, most conv_in\.bias/exp_avg: by 1e-07 at most"],
        ),
        (change_a_latent, [r"\.safetensors: 1 of 1 tensors differ, most (data|concatenated): by "]),
        (change_a_record, [r"metrics\.jsonl: line \d+\.loss: [\d.]+ -> 0\.5$"]),
        (change_a_verdict, [r"verdict\.txt: line 1: .*optimizer.* -> .*ema"]),
        (lose_a_file, [r"half/metrics\.jsonl: only in "]),
    ],
)
def test_what_differs_is_named(tmp_path: Path, change: Callable[[Path], None], found: list[str]) -> None:
    """A change of times, of the place of the code, and of an ignored key are none."""
    new = Path(shutil.copytree(FOLDER, tmp_path / "new"))
    change(new)
    done, lines = compare(FOLDER, new, ignored=["young"])
    assert "tensors of" in done[0]
    assert len(lines) == len(found)
    for line, pattern in zip(lines, found, strict=True):
        assert re.search(pattern, line), line


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FOLDER), str(FOLDER)]) == 0
    assert capsys.readouterr().out.endswith("equal\n")
    new = Path(shutil.copytree(FOLDER, tmp_path / "new"))
    change_a_record(new)
    assert main([str(FOLDER), str(new), "--ignore", "young"]) == 1
    assert ".loss: " in capsys.readouterr().out
    assert main([str(FOLDER), str(tmp_path / "absent")]) == 2
    assert "no run and no latent cache in it" in capsys.readouterr().err
