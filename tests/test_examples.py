"""The examples run as they are printed in the README."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_transformers_loop_under_watch(tmp_path: Path):
    pytest.importorskip("transformers")
    script = ROOT / "examples" / "watch_transformers.py"
    added = [line for line in script.read_text().splitlines() if re.search(r"# added, \d of 3$", line)]
    assert len(added) == 3
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), str(tmp_path / "incidents")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["step 1", "step 2", "step 3"]
    assert "nan was born in nll_loss" in done.stderr
    assert "empty_reduction" in done.stderr
    verdict = json.loads((tmp_path / "incidents" / "step-00000004" / "verdict.json").read_text())
    assert (verdict["cause"], verdict["step"], verdict["reproducible"]) == ("empty_reduction", 3, True)
