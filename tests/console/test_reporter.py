"""Who hears what: terminal or not, quiet, a stage within a command, log.txt."""

from pathlib import Path

import pytest
from rich.table import Table

from shadowlab.console.pace import Pace
from shadowlab.console.reporter import Reporter


def speak(reporter: Reporter, log: Path) -> None:
    reporter.log_to(log)
    reporter.say("said")
    reporter.warn("careful")
    table = Table()
    table.add_column("in a table")
    reporter.table(table)
    with reporter.start("train", 2):
        reporter.advance(1, 2, {"loss": 0.5}, log=True, live={"memory": "1 GiB"})
    reporter.conclude("train: passed")
    reporter.close()


def test_quiet_prints_warnings_and_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speak(Reporter(), tmp_path / "loud.txt")
    loud = capsys.readouterr().out
    speak(Reporter(quiet=True), tmp_path / "quiet.txt")
    assert capsys.readouterr().out == "warning: careful\ntrain: passed\n"
    assert (tmp_path / "quiet.txt").read_text() == (tmp_path / "loud.txt").read_text()
    for words in ("said", "warning: careful", "in a table", "step 1/2  loss 0.5  0 s", "train: passed"):
        assert words in loud and words in (tmp_path / "quiet.txt").read_text()
    assert "GiB" not in loud


def test_quiet_with_json_leaves_stdout_to_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True, as_json=True)
    speak(reporter, tmp_path / "log.txt")
    assert reporter.result({"passed": True})
    written = capsys.readouterr()
    assert written.out == '{\n  "passed": true\n}\n'
    assert written.err == "warning: careful\ntrain: passed\n"


def test_a_stage_within_a_command_has_no_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train --quiet` that runs check-forward first ends with one line, its own."""
    inner = Reporter(quiet=True, as_json=True).without_result()
    speak(inner, tmp_path / "log.txt")
    assert not inner.result({"passed": True})
    written = capsys.readouterr()
    assert written.out == "" and written.err == "warning: careful\n"
    assert "train: passed" in (tmp_path / "log.txt").read_text()


def test_a_line_of_its_own_counts_as_the_last_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every step from the fifth second on is thought to be overdue."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(Pace.__init__, "__defaults__", (lambda: now[0],))
    reporter = Reporter()
    with reporter.start("samples", 100, noun="sample"):
        for step in range(1, 101):
            now[0] += 1.0
            reporter.advance(step, 100, {}, log=step == 100, line=f"sample {step}")
    assert capsys.readouterr().out.split("\n") == ["sample 5", "sample 35", "sample 65", "sample 95", "sample 100", ""]
