"""What the README promises beyond what its commands print (tests/test_docs_commands.py)."""

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from cli.main import app
from tests import pages

README = pages.ROOT / "README.md"


def test_the_verdict_is_what_is_printed(seed_fp16: tuple[str, Path]) -> None:
    """Word for word; but operands depend on the processor, and the run's name on the time."""
    [shown] = [command for command in pages.commands(README) if command.words.endswith("--allow-unsafe")]
    assert shown.words == "shadowlab train --config seed-fp16 --allow-unsafe"
    lines = [line for line in plain(shown.output or "") if line != "..."]
    assert len(lines) >= 15
    assert not [line for line in lines if line not in plain(seed_fp16[0])]


def test_nothing_is_kept_of_a_step_that_went_bad(seed_fp16: tuple[str, Path]) -> None:
    stored = [path for path in seed_fp16[1].rglob("*.safetensors") if "incidents" not in path.parts]
    assert not stored, "a failed run left weights behind"


def test_the_run_that_could_not_begin_names_the_one_that_failed(seed_fp16: tuple[str, Path]) -> None:
    """The folder that carries the name is not the one with the incident."""
    [failed] = (path.parents[1] for path in seed_fp16[1].glob("runs/*/required/*/incidents/step-*"))
    begun = failed.parents[1]
    done = CliRunner().invoke(app, ["health", str(begun), "--json"])
    assert done.exit_code == 1
    [finding] = json.loads(done.stdout)["findings"]
    assert finding["evidence"].startswith("train failed: overfit did not pass, so training did not begin; see ")
    assert finding["evidence"].endswith(failed.name)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


def plain(text: str) -> list[str]:
    text = re.sub(r"runs/seed-fp16-train-\w+", "runs/NAME", text)
    text = re.sub(r"source +\S*/?(shadowlab/training/step.py:\d+)", r"source \1", text)
    return [line for line in text.splitlines() if not line.startswith(("  operands", "  zero"))]
