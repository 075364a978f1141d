"""The loop's own body under watch: `for attempt in watch.attempts(): with attempt:`."""

import contextlib
import gc
import math
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.loops import Net
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")


class Body:
    """A loop's parts. `spoil`: the model's output becomes NaN."""

    def __init__(self, **options: Any) -> None:
        self.model = Net(norm=nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.3)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.watch = Watch(self.model, self.optimizer, **{"incidents": None, "statistics_every": 2} | options)
        self.spoil, self.num_runs = False, 0

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        self.num_runs += 1
        self.optimizer.zero_grad()
        loss = self.model(batch["x"]).square().mean()
        if self.spoil:
            loss = (loss - 1e3).sqrt()
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self) -> dict[str, bytes]:
        return bits_of(state_of([self.model], self.optimizer)) | {"random": bytes(torch.get_rng_state())}


def batches(number: int = 5) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(5, 4)} for _ in range(number)]


def test_a_loop_is_bit_identical_in_each_form():
    def final(form: str) -> tuple[dict[str, bytes], list[float]]:
        torch.manual_seed(0)
        body, losses = Body(), []
        for i, batch in enumerate(batches()):
            if form == "attempts":
                for attempt in body.watch.attempts(batch=batch):
                    with attempt:
                        loss = body(batch)
                        if i == 3:
                            continue
            else:
                loss = body.watch.step(lambda: body(batch), batch=batch) if form == "step" else body(batch)  # noqa: B023
            losses.append(loss.item())
        assert body.num_runs == 5
        return body.state(), losses

    assert final("attempts") == final("step") == final("bare")


@pytest.mark.parametrize("leave", ["end", "continue", "break", "return"])
def test_a_trip_is_explained_however_the_body_is_left(leave: str, tmp_path: Path):
    body = Body(incidents=tmp_path)

    def loop() -> None:
        for i, batch in enumerate(batches(3)):
            body.spoil = i == 2
            before.append(body.state())
            for attempt in body.watch.attempts(batch=batch, step_index=40 + i):
                with attempt:
                    body(batch)
                    if i == 2 and leave == "continue":
                        continue
                    if i == 2 and leave == "break":
                        break
                    if i == 2 and leave == "return":
                        return

    before: list[Any] = []
    with pytest.raises(NonFiniteError) as caught:
        loop()
    verdict = caught.value.verdict
    assert (verdict.op, verdict.phase, verdict.step) == ("sqrt", "loss", 42)
    assert verdict.source is not None and verdict.source.startswith(__file__)
    assert caught.value.incident == tmp_path / "step-00000043"
    assert body.state() == before[2] and body.num_runs == 4
    assert caught.value.__context__ is None
    assert body.watch.layers  # of the repetition


def test_a_body_that_is_left_before_its_trip_is_known_is_undone_and_reported():
    """A loss that the step returns and nobody differentiates is looked at when the body has ended."""
    body = Body()
    before = body.state()

    def left() -> None:
        for attempt in body.watch.attempts():
            with attempt:
                torch.rand(1)
                attempt.result = torch.tensor(torch.nan)
                break

    with pytest.warns(RuntimeWarning, match="left by break or return"):
        left()
    assert body.state() == before
    with pytest.raises(NonFiniteError, match="was not repeated") as caught:
        body.watch.step(lambda: body(batches()[0]))
    assert caught.value.verdict.phase == "loss" and body.num_runs == 0
    body.watch.step(lambda: body(batches()[0]))
    with pytest.warns(RuntimeWarning):
        left()
    with pytest.raises(NonFiniteError):
        body.watch.detach()


@pytest.mark.parametrize("spoiled", ["outer", "inner"])
def test_a_watch_inside_a_step_of_another_one(spoiled: str):
    """Each answers for its own; what the inner one raises is not repeated by the outer one."""
    outer, inner = Body(), Body()
    batch = batches()[0]
    inner.spoil, outer.spoil = spoiled == "inner", spoiled == "outer"

    def both() -> None:
        inner.watch.step(lambda: inner(batch))
        outer(batch)

    with pytest.raises(NonFiniteError) as caught:
        outer.watch.step(both)
    assert caught.value.verdict.op == "sqrt"
    assert (outer.num_runs, inner.num_runs) == ((2, 2) if spoiled == "outer" else (0, 2))
    with pytest.raises(RuntimeError, match="inside a step of the same watch"):
        outer.watch.step(lambda: outer.watch.step(lambda: None))


def test_the_trip_of_an_outer_watch_passes_through_an_inner_step():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer, inner = (Watch(model, optimizer, incidents=None) for _ in range(2))
    runs = []

    def step() -> None:
        runs.append(1)
        (model(x) - 100).sqrt().sum().backward()
        outer.note(loss=torch.nan, grad_norm=1.0)

    with pytest.raises(NonFiniteError) as caught:
        outer.step(lambda: inner.step(step))
    assert caught.value.verdict.op == "sqrt" and len(runs) == 2
    assert outer._watched.running is None and inner._watched.running is None


@pytest.mark.parametrize("detached", [False, True])
def test_a_body_outside_of_its_attempt_is_an_error(detached: bool):
    body = Body()
    if detached:
        body.watch.detach()
    with pytest.raises(TypeError, match="with attempt:"):
        for _ in body.watch.attempts():
            pass
    with pytest.raises(TypeError, match=r"for attempt in watch.attempts"), body.watch.attempts():
        pass


def test_an_interruption_ends_the_step_as_it_is():
    body = Body()

    def interrupted(after: int) -> None:
        for attempt in body.watch.attempts():
            with attempt:
                if body.num_runs == after:
                    raise KeyboardInterrupt
                body(batches()[0])

    for in_repetition in (False, True):
        body.spoil, body.num_runs = in_repetition, 0
        with pytest.raises(KeyboardInterrupt):
            interrupted(int(in_repetition))
    body.spoil = False
    body.watch.step(lambda: body(batches()[0]))


def test_nothing_of_a_tripped_step_stays_in_memory():
    body = Body()
    body.spoil, seen = True, []

    def step() -> None:
        x = torch.randn(5, 4)
        seen.append(weakref.ref(x))
        body({"x": x})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(NonFiniteError):
            body.watch.step(step)
        gc.collect()
    assert len(seen) == 2 and not any(reference() is not None for reference in seen)


def test_a_step_keeps_nothing_of_the_loop_alive() -> None:
    """Neither what the loop's variables held nor its batch, though the loop's variable holds the attempt."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch = Watch(model, optimizer, incidents=None)
    batch, output = torch.ones(3, 2), torch.zeros(3)
    kept = [weakref.ref(batch), weakref.ref(output)]
    for attempt in watch.attempts(batch=batch):
        with attempt:
            optimizer.zero_grad()
            model(batch).mean().backward()
            optimizer.step()
    assert attempt.was_entered
    del batch, output
    assert [one() for one in kept] == [None, None]


def test_what_the_loop_got_from_locals_stays() -> None:
    """One dictionary serves `locals()` and whoever looks at a frame from outside."""
    model = nn.Linear(2, 2)
    settings = locals()
    for attempt in Watch(model, incidents=None).attempts():
        with attempt:
            model(torch.ones(1, 2)).mean().backward()
    assert settings["model"] is model


def test_a_left_step_is_left_out_where_the_loop_goes_on_without() -> None:
    model = nn.Linear(2, 2)
    watch = Watch(model, torch.optim.SGD(model.parameters(), 0.1), incidents=None, policy="skip")

    def look(value: float) -> None:
        for attempt in watch.attempts():
            with attempt:
                attempt.result = (model(torch.ones(1, 2)) * value).mean()
                return

    look(1.0)
    with pytest.warns(RuntimeWarning, match="left by break or return"):
        look(math.nan)
    with pytest.warns(RuntimeWarning, match="left out, 1 so far"):
        look(1.0)
    assert watch.num_left_out == 1
