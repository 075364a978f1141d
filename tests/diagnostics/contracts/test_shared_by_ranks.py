"""What two ranks have in common, and what they may have: the questions alone, each rank in a thread."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from diagnostics.contracts import ranks
from diagnostics.contracts.family import Reports
from diagnostics.contracts.scene import Scene, Step
from tests.diagnostics.contracts.loops import Net

NUM_STEPS = 4


class Together:
    """A collective of two threads, whose current one is the rank."""

    def __init__(self) -> None:
        self.rank, self.barrier, self.given = threading.local(), threading.Barrier(2, timeout=20), [[], []]

    def gather(self, mine: list[int]) -> list[list[int]]:
        self.given[self.rank.number] = [int(one) for one in mine]
        self.barrier.wait()
        found = [list(one) for one in self.given]
        self.barrier.wait()
        return found


def found(
    monkeypatch: pytest.MonkeyPatch,
    batch_of: Any,
    states: Any = lambda rank, moment: rank,
    models: Any = None,
    rule: str = "ranks-share-samples",
) -> list[Any]:
    """(severity, where, step) of each finding of the first rank; `states` are its generator's at each moment."""
    together, moments = Together(), [0, 0]

    def random_state() -> int:
        number = together.rank.number
        moments[number] += 1
        return int(states(number, moments[number]))

    monkeypatch.setattr(ranks, "num_ranks", lambda: 2)
    monkeypatch.setattr(ranks.Ranks, "_gathered", lambda family, mine: together.gather(mine))
    monkeypatch.setattr(ranks, "random_state", random_state)
    reports = [Reports(), Reports()]
    models = models or [Net()] * 2
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]

    def run(number: int) -> None:
        together.rank.number = number
        own = Scene([models[number]], [optimizers[number]], are_given=True)
        family = ranks.Ranks(own, reports[number])
        for index in range(NUM_STEPS):
            step = Step(index, False, batch_of(number, index))
            family.begin(step)
            family.before_optimizer(step, optimizers[number], has_closure=False)
            family.end(step)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports[0].found == reports[1].found
    assert {one.rule for one in reports[0].found} <= {rule}
    return [(one.severity, one.where, one.step) for one in reports[0].found]


def drawn(*numbers: int, shape: tuple[int, ...] = (6, 8)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(n * 10**i for i, n in enumerate(numbers))))


def test_a_batch_that_all_ranks_have(monkeypatch: pytest.MonkeyPatch):
    everything = found(monkeypatch, lambda rank, index: {"x": drawn(index), "noise": drawn(index, 5)})
    assert everything == [("alarm", "batch", 1)]


def test_noise_that_all_ranks_have_and_samples_of_their_own(monkeypatch: pytest.MonkeyPatch):
    batch = lambda rank, index: {"x": drawn(index, rank), "noise": drawn(index, 5), "t": drawn(index, 7, shape=(6,))}  # noqa: E731
    assert found(monkeypatch, batch) == [("alarm", "noise", 1)]


@pytest.mark.parametrize(
    "shared",
    [
        lambda index: drawn(0),  # a prompt that stays
        lambda index: torch.full((6, 2), 64.0 + index),  # the size of this step's bucket
        lambda index: torch.tensor(0.1 * index),  # a weight that grows
        lambda index: torch.randint(0, 4, (6,), generator=torch.Generator().manual_seed(index)),  # a few labels
        lambda index: torch.tensor([0.1, 0.2]) * index,
    ],
)
def test_what_ranks_may_share(shared: Any, monkeypatch: pytest.MonkeyPatch):
    assert found(monkeypatch, lambda rank, index: {"x": drawn(index, rank), "shared": shared(index)}) == []


def test_random_numbers_of_the_step_that_are_the_same_are_a_warning(monkeypatch: pytest.MonkeyPatch):
    def batch(rank: int, index: int) -> dict[str, Tensor]:
        return {"x": drawn(index, rank)}

    place = ("warning", "random numbers of the step", 1)
    assert found(monkeypatch, batch, lambda rank, moment: moment) == [place]
    assert found(monkeypatch, batch, lambda rank, moment: 0) == []  # nothing is drawn
    assert found(monkeypatch, batch, lambda rank, moment: 2 * moment + rank) == []


@pytest.mark.parametrize("averaged", [True, False])
def test_ranks_that_began_apart_and_average_their_gradients(averaged: bool, monkeypatch: pytest.MonkeyPatch):
    """Without an average they are models of their own: an ensemble."""
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(Net())
    for number, model in enumerate(models):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 if averaged else 1.0 + number)

    def batch(rank: int, index: int) -> dict[str, Tensor]:
        return {"x": drawn(index, rank)}

    said = found(monkeypatch, batch, models=models, rule="ranks-differ")
    assert said == ([("alarm", "first.weight", 1)] if averaged else [])


def test_an_input_that_is_empty_on_all_ranks_or_sparse_tells_nothing(monkeypatch: pytest.MonkeyPatch):
    def batch(rank: int, index: int) -> dict[str, Tensor]:
        graph = torch.eye(4) * (index + 1)
        return {"x": drawn(index, rank), "boxes": torch.zeros(0, 4), "graph": graph.to_sparse()}

    assert found(monkeypatch, batch) == []
