"""Explicit generators of random numbers are put back; and what a step that is finite the second time is told."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch

GLOBAL = torch.Generator()


def draw(generator: Any) -> float:
    """A number of a generator of any make, from 0 to 1."""
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    return float(generator.random_sample() if isinstance(generator, numpy.random.RandomState) else generator.random())


def draw_global() -> float:
    return draw(GLOBAL)


MAKES: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "numpy": lambda: numpy.random.default_rng(3),
    "numpy's old": lambda: numpy.random.RandomState(3),
    "python": lambda: random.Random(3),
}


@dataclasses.dataclass(slots=True)
class Sampler:
    generator: Any

    def __call__(self) -> float:
        return draw(self.generator)


class Trainer:
    def __init__(self, generator: Any) -> None:
        self.parts = {"sampler": [Sampler(generator)]}

    def number(self) -> float:
        return self.parts["sampler"][0]()


class Noisy(nn.Module):
    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(1, 1)])
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return x + draw(self.generator)


def loop(number: Callable[[], float], **options: Any) -> tuple[Watch, Callable[[], Tensor], list[float]]:
    """A step whose loss is NaN where the number that it draws is above 0.8; drawn so far."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[float] = []

    def step() -> Tensor:
        optimizer.zero_grad()
        value = number()
        seen.append(value)
        loss = (model(torch.ones(3, 2)).square() + 1 + (0.8 - value)).clamp(-1, 1).sum() * 0 + torch.tensor(
            0.8 - value
        ).sqrt()
        loss.backward()
        optimizer.step()
        return loss

    return Watch(model, optimizer, incidents=None, **options), step, seen


def first_trip(watch: Watch, step: Callable[[], Tensor], batch: Any = None) -> NonFiniteError:
    for _ in range(100):
        try:
            watch.step(step, batch=batch)
        except NonFiniteError as error:
            return error
    raise AssertionError("no step tripped")


def places(generator: Any) -> dict[str, tuple[Callable[[], float], Any]]:
    """Where a generator may be: a function that draws from it, and the batch."""
    trainer, noisy, batch = Trainer(generator), Noisy(generator), {"x": [{"generator": generator}]}
    default = lambda generator=generator: draw(generator)  # noqa: E731
    return {
        "closure": (lambda: draw(generator), None),
        "default": (default, None),
        "partial": (partial(draw, generator), None),
        "self": (trainer.number, None),
        "object": (lambda: trainer.parts["sampler"][0](), None),
        "model": (lambda: float(noisy(torch.zeros(()))), None),
        "batch": (lambda: draw(batch["x"][0]["generator"]), batch),
    }


@pytest.mark.parametrize("make", [lambda: numpy.random.default_rng(3), lambda: random.Random(3)])
def test_a_generator_whose_method_alone_is_at_hand(make: Callable[[], Any]):
    uniform = make().random
    watch, step, seen = loop(lambda: float(uniform()))
    assert first_trip(watch, step).verdict.reproducible and seen[-1] == seen[-2]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("place", ["closure", "default", "partial", "self", "object", "model", "batch"])
def test_a_generator_is_found_and_put_back(place: str, make: str):
    generator = MAKES[make]()
    number, batch = places(generator)[place]
    watch, step, seen = loop(number)
    error = first_trip(watch, step, batch)
    assert error.verdict.reproducible and error.verdict.op == "sqrt", error
    assert seen[-1] == seen[-2] > 0.8
    assert draw(generator) == pytest.approx(seen[-1])  # as before the step


def test_a_generator_among_the_globals_of_what_the_step_calls():
    GLOBAL.manual_seed(3)
    watch, step, seen = loop(draw_global)
    assert first_trip(watch, step).verdict.reproducible and seen[-1] == seen[-2]


def drawing(generator: Any) -> Callable[[], float]:
    return lambda: draw(generator)


def test_functions_of_one_code_have_closures_of_their_own():
    """One factory makes several, and its name stands in the code."""
    draws = [drawing(torch.Generator().manual_seed(seed)) for seed in (3, 4, 5)]
    watch, step, seen = loop(lambda: drawn[0])
    drawn = [0.0]

    def body() -> None:
        for _ in range(100):
            for attempt in watch.attempts():
                with attempt:
                    drawn[0] = max(one() for one in draws)
                    step()
        drawing(None)

    with pytest.raises(NonFiniteError) as caught:
        body()
    assert caught.value.verdict.reproducible and seen[-1] == seen[-2]


def test_a_generator_in_the_frame_of_a_body():
    generator = torch.Generator().manual_seed(3)
    watch, step, seen = loop(lambda: drawn[0])
    drawn = [0.0]

    def body() -> None:
        for _ in range(100):
            for attempt in watch.attempts():
                with attempt:
                    drawn[0] = draw(generator)
                    step()

    with pytest.raises(NonFiniteError) as caught:
        body()
    assert caught.value.verdict.reproducible and seen[-1] == seen[-2]


@pytest.mark.parametrize("given", [True, False])
def test_a_generator_that_is_not_found_is_named_and_from_then_on_put_back(given: bool):
    hidden: dict[int, Any] = dict.fromkeys(range(100))
    hidden[99] = torch.Generator().manual_seed(3)  # behind more than is looked at
    nested = [[[[[[hidden]]]]]]
    watch, step, seen = loop(lambda: draw(nested[0][0][0][0][0][0][99]), generators=[hidden[99]] if given else ())
    error = first_trip(watch, step)
    if given:
        assert error.verdict.reproducible, error
        return
    assert error.verdict.reproducible is False
    assert "torch.Generator (cpu)" in error.verdict.fix and "generators=" in error.verdict.fix
    assert "race" not in error.verdict.fix
    assert first_trip(watch, step).verdict.reproducible and seen[-1] == seen[-2]


def test_generators_must_be_generators():
    with pytest.raises(TypeError, match="generators"):
        Watch(nn.Linear(1, 1), generators=[3])


# What the watch knows of a step that is finite the second time


def test_a_batch_from_an_iterator_is_named():
    numbers: Iterator[float] = iter([0.1, 0.9, 0.2, 0.3])
    watch, step, _ = loop(lambda: next(numbers))
    error = first_trip(watch, step)
    assert "`numbers`" in error.verdict.fix and "before the step" in error.verdict.fix, error
    assert "race" not in error.verdict.fix


def test_an_optimizer_that_steps_only_the_first_time_is_named():
    model, calls = nn.Linear(2, 1), [0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, incidents=None)

    def step() -> None:
        calls[0] += 1
        model(torch.ones(3, 2)).sum().backward()
        if calls[0] % 3 == 0:
            model.weight.grad.fill_(torch.nan)
            optimizer.step()

    watch.step(step)
    watch.step(step)
    with pytest.raises(NonFiniteError) as caught:
        watch.step(step)
    assert "optimizer stepped the first time" in caught.value.verdict.fix, caught.value
    assert "race" not in caught.value.verdict.fix


def test_without_a_clue_the_suspects_are_those_that_are_left():
    spoil = [0.1, 0.9, 0.1]
    watch, step, _ = loop(lambda: spoil.pop(0))
    fix = first_trip(watch, step).verdict.fix
    assert "race" in fix and "hardware" in fix
    assert not any(word in fix for word in ("iterator", "compile", "gradients", "generator"))
