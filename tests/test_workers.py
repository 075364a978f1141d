"""Loader processes beyond what a machine can use are refused before anything is made."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from shadowlab.errors import UserError
from shadowlab.settings import load_config
from shadowlab.workers import require_few_workers

PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize("processes", [1, 2])
def test_four_workers_a_processor_are_allowed_and_no_more(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    most = 4 * PROCESSORS // processes
    require_few_workers(load_config(assignments=[f"data.num_workers={most}"]))
    with pytest.raises(
        UserError, match=rf"data\.num_workers={most + 1}.*at most {4 * PROCESSORS} on this machine, four"
    ):
        require_few_workers(load_config(assignments=[f"data.num_workers={most + 1}"]))


@pytest.mark.parametrize("words", [["train"], ["data", "encode", "--out", "latents"]])
def test_a_command_says_so_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, "--set", "data.num_workers=100000", "--device", "cpu"])
    assert done.exit_code == 2 and "data.num_workers=100000: at most" in done.output
    assert not list(tmp_path.iterdir())
