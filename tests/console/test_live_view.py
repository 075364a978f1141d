"""The live view as a terminal shows it."""

import math
import os
import signal

import pytest

from shadowlab.console.reporter import Reporter
from shadowlab.interruption import Interruption
from tests.screen import screen, terminal

NUMBERS = {"loss": 0.25, "grad norm": 1.5, "lr": 1e-3, "data wait": "3 %"}
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
LIVE = {"lowest headroom": f"5.3 bits in {LAYER} at step 10", "memory": "1.25 GiB", "skipped": 2}


def reporter_on(width: int, **options: bool) -> Reporter:
    reporter = Reporter(**options)
    reporter.console = terminal(width)
    return reporter


@pytest.mark.parametrize("width", [40, 120])
def test_everything_is_there_at_any_width(width: int) -> None:
    reporter = reporter_on(width)
    with reporter.start("train", 200):
        for step in range(1, 6):
            reporter.advance(step, 200, NUMBERS | {"loss": float(step)}, log=True, live=LIVE)
    lines = screen(reporter.console)
    assert lines[0].startswith("╭─ train ─") and lines[0].endswith("╮")
    assert "step 5/200" in lines[1] and lines[1].endswith("left │")
    assert [line for line in lines if "loss" in line and "▁▃▅▇█" in line and "5 " in line] == [lines[2]]
    assert "grad norm  1.5" in lines[3] and "▄▄▄▄▄" in lines[3]
    inside = "".join(line.strip("│ ") for line in lines[4:]).replace(" ", "")
    for words in ("lr 0.001", "data wait 3 %", "memory 1.25 GiB", "skipped 2", f"5.3 bits in {LAYER} at step 10"):
        assert words.replace(" ", "") in inside
    assert {len(line) for line in lines if line} == {min(width, 100)}
    assert not [line for line in lines if line.startswith("step 5/200")]  # the line of a log is for logs


def test_nan_is_shown_as_such() -> None:
    reporter = reporter_on(60)
    with reporter.start("train", 9):
        for step, norm in enumerate([1.0, math.nan, math.inf, 2.0, math.inf], start=1):
            reporter.advance(step, 9, {"loss": math.nan, "grad norm": norm}, log=False)
    shown = screen(reporter.console)
    assert [line for line in shown if "loss       nan        NNNNN" in line]
    assert [line for line in shown if "grad norm  inf        ▁N∞█∞" in line]


def test_what_is_said_meanwhile_stands_above_unbroken() -> None:
    """A message longer than the terminal, between two drawings and with drawings by the clock."""
    reporter = reporter_on(40)
    message = "step 10  validation loss 0.1234  R^2 0.950  soft IoU 0.811  RMSE 0.0346"
    with reporter.start("train", 20):
        reporter.advance(1, 20, NUMBERS, log=False, live=LIVE)
        reporter.say(message)
        reporter.advance(2, 20, NUMBERS, log=False)
        reporter.warn("30 % of the time went into waiting for data")
        reporter.advance(3, 20, NUMBERS, log=False, live=LIVE)
    reporter.say("after it")
    lines = screen(reporter.console)
    top = next(i for i, line in enumerate(lines) if line.startswith("╭"))
    assert lines[0] + " " + lines[1] == message or lines[0] + lines[1] == message
    assert f"{lines[2]} {lines[3]}" == "warning: 30 % of the time went into waiting for data"
    assert top == 4
    assert sum(line.startswith("╭") for line in lines) == sum(line.startswith("╰") for line in lines) == 1
    assert lines[lines.index(next(line for line in lines if line.startswith("╰"))) + 1] == "after it"


def test_ctrl_c_is_answered_inside_the_view(capfd: pytest.CaptureFixture[str]) -> None:
    """A line written past the view would be drawn over."""
    reporter = reporter_on(60)
    with reporter.start("train", 20), Interruption().after_step(speaks=True, show=reporter.notice) as interruption:
        reporter.advance(1, 20, NUMBERS, log=False)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
    assert "stopping: this step is finished, then saved" in "\n".join(screen(reporter.console))
    assert capfd.readouterr().err == ""
    with Interruption().after_step(speaks=True, show=reporter.notice):  # the view is gone
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.startswith("\nstopping: this step is finished")


def test_without_numbers_it_is_a_bar() -> None:
    reporter = reporter_on(60)
    with reporter.start("samples", 4, noun="sample"):
        reporter.advance(2, 4, {}, log=True)
    [line] = [line for line in screen(reporter.console) if line]
    assert line.startswith("sample 2/4 ")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    reporter = Reporter()
    reporter.console = terminal(80)
    reporter.console._environ = {"TERM": "dumb"}
    reporter.console.is_interactive = False  # as Console itself decides for TERM=dumb
    assert reporter.console.is_dumb_terminal
    with reporter.start("train", 4):
        reporter.advance(2, 4, NUMBERS, log=True, live=LIVE)
        reporter.advance(3, 4, NUMBERS, log=False, live=LIVE)
    assert [line for line in screen(reporter.console) if line] == [
        "step 2/4  loss 0.25  grad norm 1.5  lr 0.001  data wait 3 %  0 s"
    ]


def test_a_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = reporter_on(60)
    monkeypatch.setattr(type(reporter.console), "encoding", "ascii")
    with reporter.start("train", 4):
        for step in (1, 2):
            reporter.advance(step, 4, NUMBERS | {"loss": float(step)}, log=False)
    lines = screen(reporter.console)
    assert all(line.isascii() for line in lines)
    assert [line for line in lines if "loss       2          _#" in line]
