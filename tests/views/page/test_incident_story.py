"""What is reported of an incident's source: as it was, and what became of the file since."""

import os
import time
from pathlib import Path

import pytest

from diagnostics.incidents.evidence import write_incident
from diagnostics.verdict import Verdict
from shadowlab.views.page.incident_story import IncidentStory


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(folder: Path, *, age: float = 1e6) -> Path:
    file = folder / "step.py"
    file.write_text("".join(f"x{n} = {n}\n" for n in range(1, 31)))
    os.utime(file, (time.time() - age,) * 2)
    return file


def incident(folder: Path, file: Path, line: int) -> Path:
    verdict = Verdict("forward", None, "unknown", op="exp", source=f"{file}:{line}", step=0)
    return write_incident(folder / "incidents", verdict, culprit=None, batch=None, randomness={})


def test_the_incident_keeps_what_the_file_said(tmp_path: Path) -> None:
    file = source(tmp_path)
    folder = incident(tmp_path, file, 15)
    story = IncidentStory.read(folder)
    assert story.excerpt_note == "As it was at the incident."
    assert (15, "x15 = 15", True) in story.source_lines

    file.write_text("\n".join(["# new"] * 40))
    changed = IncidentStory.read(folder)
    assert (15, "x15 = 15", True) in changed.source_lines
    assert changed.excerpt_note.endswith("The file has changed since.")

    file.unlink()
    assert IncidentStory.read(folder).excerpt_note.endswith("The file is not below the current folder now.")


def test_a_file_that_was_written_to_under_the_run_is_reported(tmp_path: Path) -> None:
    story = IncidentStory.read(incident(tmp_path, source(tmp_path, age=-5), 15))
    assert "lines may have moved" in story.excerpt_note


def test_an_incident_without_lines_shows_the_file_as_it_is(tmp_path: Path) -> None:
    file = source(tmp_path)
    folder = incident(tmp_path, file, 15)
    (folder / "source.json").unlink()
    story = IncidentStory.read(folder)
    assert story.excerpt_note.startswith("As the file is now") and "changed" not in story.excerpt_note
    os.utime(file, (time.time() + 60,) * 2)
    assert "changed after the incident" in IncidentStory.read(folder).excerpt_note
    (folder / "source.json").write_text("{")
    assert any("source.json" in problem for problem in IncidentStory.read(folder).problems)
    file.unlink()
    assert IncidentStory.read(folder).excerpt is None
