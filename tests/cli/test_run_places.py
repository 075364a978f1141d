"""What a user names as a run, and the system lets nobody look at."""

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.views.records import step, write_run

COMMANDS = (
    ("why",),
    ("health",),
    ("inspect",),
    ("inspect", "open", "--against"),
    ("report",),
    ("tensorboard",),
    ("tensorboard", "--rebuild"),
)


def error_line(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2, result.output
    [line] = result.output.splitlines()
    return line.removeprefix("error: ")


@pytest.fixture(autouse=True)
def _runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One to look at, and one in a folder without permission, as the system would answer whoever is not root."""
    write_run(Path("runs/open"), [step(1, {"conv_in": 1.0})])
    write_run(Path("runs/closed/mine"), [step(1, {"conv_in": 1.0})])
    stat = Path.stat

    def refusing(self: Path, **named: Any) -> os.stat_result:
        if self.parts[:2] == ("runs", "closed") and len(self.parts) > 2:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **named)

    monkeypatch.setattr(Path, "stat", refusing)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("run", ["runs/closed/mine", "closed/mine", "runs/closed"])
def test_no_permission_is_one_line_that_names_the_place(command: tuple[str, ...], run: str) -> None:
    line = error_line(*command, run)
    assert line.startswith("runs/closed/") and line.endswith(": cannot be looked at (Permission denied)")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_name_that_is_too_long_is_one_line(command: tuple[str, ...]) -> None:
    line = error_line(*command, "x" * 300)
    assert line.startswith("x" * 300) and line.endswith(": cannot be looked at (File name too long)")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_home_of_nobody(command: tuple[str, ...]) -> None:
    assert error_line(*command, "~absent-user/run").startswith("~absent-user/run: no such run")
