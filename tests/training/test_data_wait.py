"""The share of time that goes into waiting for data: arithmetic, and one warning with its fix."""

import pytest

from shadowlab.console.reporter import Reporter
from shadowlab.training.data_wait import DataWait
from tests import tiny


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reported: list[str] = []
    monkeypatch.setattr(Reporter, "warn", lambda self, text: reported.append(text))
    return reported


def data_wait(*assignments: str) -> DataWait:
    wait = DataWait(tiny.config_of("x/y", *assignments), Reporter(active=False))
    wait.add(30.0, 31.0)  # the first step waits for the workers to start
    return wait


def test_it_is_the_share_of_the_steps_since_the_last_line(warnings: list[str]) -> None:
    wait = data_wait()
    assert wait.text == "0 %"
    wait.add(0.25, 2.0)
    wait.add(0.05, 4.0)
    assert wait.share == pytest.approx(0.05)
    assert wait.text == "5 %"
    wait.end_window()
    assert wait.text == "0 %"
    wait.add(0.5, 2.5)
    assert wait.share == pytest.approx(0.2)
    wait.end_window()
    assert not warnings


def test_it_warns_once_and_says_what_to_do(warnings: list[str]) -> None:
    wait = data_wait("data.path=renders", "data.num_workers=2")
    for _ in range(3):
        wait.add(0.5, 2.0)
        wait.end_window()
    [text] = warnings
    assert text.startswith("25 % of the time went into waiting for data: raise --set data.num_workers=N, now 2, or ")
    assert "shadowlab data encode --data renders --out LATENTS " in text
    assert text.endswith("--set data.latents=LATENTS")


def test_with_latents_the_disk_is_left(warnings: list[str]) -> None:
    wait = data_wait("data.latents=folder")
    wait.add(1.0, 2.0)
    wait.end_window()
    assert warnings == [
        "50 % of the time went into waiting for data: raise --set data.num_workers=N, now 0, or put folder on a faster "
        "disk"
    ]
