"""The README's commands run as written; what takes minutes is only shortened."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.main import app
from tests.runs import run_here

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Appended to a command: fewer steps and no criterion, nothing that changes what the command means.
SHORTER = {
    "overfit": "--max-steps 2 --set overfit.min_r2=-1e9 --set overfit.min_soft_iou=0 --set validation.num_noises=1",
    "train": "--set overfit.min_r2=-1e9 --set overfit.min_soft_iou=0 "
    "--set validation.num_samples=2 --set validation.num_noises=1 --set train.batch_size=2",
}


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def stage_commands() -> list[str]:
    start = README.index("## The three stages")
    block = re.search(r"```sh\n(.*?)```", README[start:], re.DOTALL)
    assert block is not None
    return block[1].strip().splitlines()


def test_every_shadowlab_command_and_option_exists() -> None:
    root = get_command(app)
    found = 0
    for line in shell_lines():
        if "shadowlab " not in line or line.startswith(("pip", "make")):
            continue
        words = shlex.split(line[line.index("shadowlab ") :])[1:]
        command = root
        while words and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
        found += 1
    assert found >= 7


@pytest.mark.slow
def test_the_three_stages_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four commands in one folder: `train` accepts the stages that the first two proved, `--resume` goes on."""
    monkeypatch.chdir(tmp_path)
    for number, line in enumerate(stage_commands()):
        words = shlex.split(line)
        extra = shlex.split(SHORTER.get(words[1], ""))
        if words[1] == "train":
            words[words.index("--max-steps") + 1] = str(number)  # 2, then 3
        done = run_here([*words, *extra])
    assert "check-forward: passed before" in done.stdout
    assert "overfit: passed before" in done.stdout
    [run] = tmp_path.glob("runs/tiny-train-*")
    assert [path.name for path in sorted(run.glob("checkpoints/step-*"))] == ["step-00000002", "step-00000003"]


@pytest.mark.slow
def test_the_first_screen_is_what_is_printed(seed_fp16: tuple[str, Path]) -> None:
    """Word for word; but operands depend on the processor, and the run's name on the time."""
    block = re.search(r"```\n\$ (shadowlab train --config seed-fp16.*?)\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert block[1] == "shadowlab train --config seed-fp16 --allow-unsafe"
    printed, folder = plain(seed_fp16[0]), seed_fp16[1]
    shown = [line for line in plain(block[2]) if line != "..."]
    assert len(shown) >= 15
    assert not [line for line in shown if line not in printed]
    stored = [path for path in folder.rglob("*.safetensors") if "incidents" not in path.parts]
    assert not stored, "a failed run left weights behind"


def plain(text: str) -> list[str]:
    text = re.sub(r"runs/seed-fp16-train-\w+", "runs/NAME", text)
    text = re.sub(r"source +\S*/?(shadowlab/training/step.py:\d+)", r"source \1", text)
    return [line for line in text.splitlines() if not line.startswith("  operands")]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_to_files_lead_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()


def test_the_run_that_could_not_begin_names_the_one_that_failed(seed_fp16: tuple[str, Path]) -> None:
    """The folder that carries the name is not the one with the incident."""
    [failed] = (path.parents[1] for path in seed_fp16[1].glob("runs/*/incidents/step-*"))
    begun = failed.with_name(failed.name.removesuffix("-overfit"))
    done = CliRunner().invoke(app, ["health", str(begun), "--json"])
    assert done.exit_code == 1
    [finding] = json.loads(done.stdout)["findings"]
    assert finding["evidence"].startswith("train failed: overfit did not pass, so training did not begin; see ")
    assert finding["evidence"].endswith(failed.name)
