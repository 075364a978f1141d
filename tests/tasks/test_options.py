"""What a task may declare as its options."""

from typing import Any

import pytest

import shadowlab.tasks
from shadowlab.settings import Config, Section, key
from shadowlab.tasks.shadow.task import ShadowTask


def test_an_option_that_decides_numbers_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumed with another value would be another run, and nothing would say so."""

    class Options(Section):
        dropout: float = key(0.1, decides="numbers")
        """Share of the conditions that are left out."""

    class Dropping(ShadowTask):
        @classmethod
        def options(cls) -> type[Any]:
            return Options

    monkeypatch.setattr(shadowlab.tasks, "task_class", lambda name: Dropping)
    with pytest.raises(TypeError, match=r"task_options\.dropout"):
        shadowlab.tasks.open_task(Config())
