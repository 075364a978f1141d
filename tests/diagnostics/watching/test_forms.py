"""Whoever writes a form that there is not is shown those that there are; and `policy="skip"`."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.loops import Net
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")


def as_decorator(watch: Watch) -> None:
    @watch.step
    def train() -> None:
        raise AssertionError("it runs nothing")


def as_decorator_with_arguments(watch: Watch) -> None:
    @watch.step
    def train(batch: Tensor) -> None:
        raise AssertionError(batch)


def as_decorator_of_a_function_elsewhere(watch: Watch) -> None:
    def train(model: Any, batch: Tensor) -> None:
        raise AssertionError(model, batch)

    watch.step(train)


def as_context(watch: Watch) -> None:
    with watch:
        raise AssertionError


def step_as_context(watch: Watch) -> None:
    with watch.step:  # type: ignore[attr-defined]
        raise AssertionError


def step_called_as_context(watch: Watch) -> None:
    with watch.step(batch=torch.zeros(2)):  # type: ignore[call-arg]
        raise AssertionError


def with_a_batch(watch: Watch) -> None:
    watch.step(torch.zeros(2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "form",
    [
        *(as_decorator, as_decorator_with_arguments, as_decorator_of_a_function_elsewhere),
        *(as_context, step_as_context, step_called_as_context, with_a_batch),
    ],
)
def test_a_form_that_there_is_not_shows_those_that_there_are(form: Callable[[Watch], None]):
    with pytest.raises(TypeError) as caught:
        form(Watch(nn.Linear(2, 2), incidents=None))
    assert "watch.step(lambda: train_one(batch), batch=batch)" in str(caught.value)
    assert "for attempt in watch.attempts(batch=batch):" in str(caught.value)


def test_any_callable_without_arguments_is_a_step():
    class Step:
        def __call__(self) -> int:
            return 1

        def method(self, more: int = 2) -> int:
            return more

    watch = Watch(nn.Linear(2, 2), incidents=None)
    assert (watch.step(Step()), watch.step(Step().method), Watch.step(watch, lambda: 3)) == (1, 2, 3)


class Skipping:
    def __init__(self, folder: Path, form: str = "step", **options: Any) -> None:
        self.model, self.form = Net(norm=nn.BatchNorm1d(6)), form
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.watch = Watch(self.model, self.optimizer, incidents=folder, **{"policy": "skip"} | options)

    def one(self, batch: Tensor) -> Tensor:
        loss = self.model(batch).square().mean()
        if not loss.isfinite() and self.form == "raising":
            raise FloatingPointError("diverged")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def run(self, batches: list[Tensor]) -> list[Tensor | None]:
        losses: list[Tensor | None] = []
        for batch in batches:
            if self.form == "attempts":
                for attempt in self.watch.attempts(batch=batch):
                    with attempt:
                        attempt.result = self.one(batch)
                losses.append(attempt.result)
            else:
                losses.append(self.watch.step(lambda: self.one(batch), batch=batch))  # noqa: B023
        return losses


@pytest.mark.parametrize("form", ["step", "attempts", "raising"])
def test_a_loop_that_must_go_on_leaves_bad_steps_out(form: str, tmp_path: Path):
    """As if the bad batches had not been; each is counted, reported and has its incident."""
    torch.manual_seed(0)
    batches, bad = [torch.randn(5, 4) for _ in range(5)], torch.full((5, 4), torch.nan)
    results = []
    for spoiled in (batches, [*batches[:1], bad, bad, *batches[1:3], bad, *batches[3:]]):
        torch.manual_seed(1)
        loop = Skipping(tmp_path, form)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            losses = loop.run(spoiled)
        assert loop.watch.num_left_out == len(spoiled) - len(batches) == losses.count(None) == len(seen)
        assert all("left out" in str(one.message) and "batch" in str(one.message) for one in seen)
        results.append((bits_of(state_of([loop.model], loop.optimizer)), [x for x in losses if x is not None]))
    assert results[0] == results[1]
    assert len(list(tmp_path.glob("step-*"))) == 3


def test_more_in_a_row_than_are_borne_raise(tmp_path: Path):
    loop, bad = Skipping(tmp_path, max_skipped_in_a_row=2), torch.full((5, 4), torch.nan)
    good = torch.randn(5, 4)
    with pytest.warns(RuntimeWarning, match="left out"):
        loop.run([good, bad, bad, good, bad, bad])
    with pytest.raises(NonFiniteError):
        loop.run([bad])
    assert loop.watch.num_left_out == 4


def test_a_step_that_cannot_be_undone_is_not_left_out(tmp_path: Path):
    loop = Skipping(tmp_path)
    loop.run([torch.randn(5, 4)])

    def twice() -> None:
        loop.one(torch.randn(5, 4))
        loop.one(torch.full((5, 4), torch.nan))

    with pytest.raises(NonFiniteError, match="NOT as before"):
        loop.watch.step(twice)


@pytest.mark.parametrize("options", [{"policy": "ignore"}, {"max_skipped_in_a_row": 0}, {"undo": "perhaps"}])
def test_an_option_that_means_nothing_is_an_error(options: Any):
    with pytest.raises(ValueError):
        Watch(nn.Linear(2, 2), **options)


def test_a_step_that_is_typed_at_the_prompt_is_no_decorated_one() -> None:
    """Each line there is line 1 of the same file."""
    names: dict[str, Any] = {"watch": Watch(nn.Linear(1, 1), incidents=None)}
    exec(compile("def train(): return 7", "<stdin>", "exec"), names)
    exec(compile("result = watch.step(train)", "<stdin>", "exec"), names)
    assert names["result"] == 7
