"""A run that was resumed says so: a mark at the step, when, and by which command."""

from pathlib import Path
from typing import Any

from diagnostics.records.history import History
from shadowlab.views.charts import plots_of
from shadowlab.views.page.curves import drawings
from shadowlab.views.page.page import build_page, commands
from shadowlab.views.page.run_view import RunView
from shadowlab.views.page.sessions import resumed_sessions
from tests.views.page.run_folders import make_run, step

FIRST: dict[str, Any] = {"kind": "header", "stage": "train", "command": ["train", "--run", "mine"]}
SECOND = FIRST | {
    "resumed_at": 20,
    "command": ["train", "--run", "mine", "--resume", "--max-steps", "40"],
    "started": "2026-01-31T09:30:00+00:00",
}


def test_a_resume_is_marked_and_its_command_shown(tmp_path: Path) -> None:
    records = [FIRST, *(step(i) for i in range(1, 21)), SECOND, *(step(i) for i in range(21, 41))]
    for drawing in drawings(History(records), plots_of(History(records))):
        x = drawing.events[0][0]
        assert drawing.events == ((x, "resumed", "step 20: Resumed after 20 steps, 2026-01-31 09:30 UTC"),)
    view = RunView.read(make_run(tmp_path / "mine", records, environment={"command": ["train", "--run", "mine"]}))
    assert [command for command, _ in commands(view)][:2] == [
        "shadowlab train --run mine",
        "shadowlab train --run mine --resume --max-steps 40",
    ]
    assert "<li>Resumed after 20 steps, 2026-01-31 09:30 UTC: <code>shadowlab train" in build_page(view)


def test_headers_of_earlier_versions_say_as_much_as_they_know() -> None:
    headers = [{"stage": "overfit"}, {"stage": "train"}, {"stage": "train"}]
    assert [(one.resumed_at, one.text) for one in resumed_sessions(headers, "train")] == [(None, "Resumed")]
    damaged = [{"stage": "train", "resumed_at": True, "command": "rm", "started": 3}] * 2
    assert [(one.command, one.text) for one in resumed_sessions(damaged, "train")] == [("", "Resumed")]
