"""What a loop differentiates, judges by and feeds: each fault next to a loop that looks like it and is right."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from diagnostics import Watch
from diagnostics.contracts.loaders import LOADERS
from diagnostics.contracts.plateaus import PLATEAUS
from diagnostics.contracts.sums import constant_in
from tests.diagnostics.contracts.loops import Loop, Net, train


def said(loop: Loop, body: Any = train, num_steps: int = 6) -> set[tuple[str, str]]:
    return {(one.rule, one.where) for one in loop.run(body, num_steps)}


# Terms of the loss among the loop's variables


def summed(cut: Callable[[Tensor], Any], weight: float, *, is_added: bool = True) -> Any:
    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()
        guessed = loop.model(loop.x)
        main_loss, spread_loss = F.cross_entropy(guessed, loop.y), cut(guessed.square().mean())
        loss = 0 + 2 * main_loss / 3 + (weight * spread_loss if is_added else 1.5)
        loss.backward()
        loop.optimizer.step()

    return body


@pytest.mark.parametrize("cut", [Tensor.item, Tensor.detach])
@pytest.mark.parametrize("weight", [1.0, 0.1, -2.0])
def test_a_variable_of_the_loop_that_is_a_constant_of_the_loss(cut: Any, weight: float):
    (found,) = Loop().run(summed(cut, weight))
    assert (found.rule, found.step, found.where) == ("loss-term-without-gradient", 1, "spread_loss")


def test_variables_that_are_differentiated_or_not_added_are_silent():
    assert Loop().run(summed(lambda term: term, 0.5)) == []
    assert Loop().run(summed(Tensor.item, 0.5, is_added=False)) == []


def test_what_a_loss_has_besides_its_variables():
    a, b = torch.tensor(2.0, requires_grad=True).exp(), torch.tensor(3.0, requires_grad=True).exp()
    variables = {"a": a, "b": b}
    for root, expected in (
        (a + b, None),
        (a + 5, 5.0),
        (2 * a - b / 4 + 1.5, 1.5),
        (3 - a, 3.0),
        (-(a + 1) * 2, -2.0),
        (torch.add(a, b, alpha=3) - 7, -7.0),
        (a * b + 1, None),  # no sum of variables
    ):
        found = constant_in(root, variables)
        assert found == (expected if expected is None else pytest.approx(expected, abs=1e-5))


# Evaluation


class Functional(Net):
    def __init__(self, knows: bool) -> None:
        super().__init__()
        self.knows = knows

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(self.first(x), 0.4, training=self.training if self.knows else True))


def validates(loop: Loop) -> None:
    loop.model.eval()
    with torch.no_grad():
        loop.loss()
    loop.model.train()


@pytest.mark.parametrize("knows", [True, False])
def test_dropout_that_is_called_as_a_function(knows: bool):
    loop = Loop(Functional(knows))
    loop.between = validates
    assert said(loop) == (set() if knows else {("training-mode-in-evaluation", "F.dropout in Functional")})


@pytest.mark.parametrize(
    ("mode", "name"), [("min", "val_acc"), ("max", "val_loss"), ("max", "val_acc"), ("min", "cost")]
)
def test_what_a_plateau_is_given(mode: str, name: str):
    loop = Loop()
    schedule = ReduceLROnPlateau(loop.optimizer, mode=mode)

    def between(loop: Loop) -> None:
        results = {name: 0.1 * loop.index}
        schedule.step(results[name])

    loop.between = between
    is_wrong = (mode, name) in (("min", "val_acc"), ("max", "val_loss"))
    where = f"ReduceLROnPlateau(mode='{mode}'): {name}"
    assert said(loop) == ({("metric-direction", where)} if is_wrong else set())
    loop.watch.detach()


def chosen(first: float, *, is_higher: bool, notes_more: bool = False) -> list[Any]:
    """A loop that keeps its best `val_acc` in a variable; `notes_more`: and the loss that came with it."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = Watch(model, optimizer, incidents=None)
    best_metric, best_loss, best_epoch = first, 9.0, 0

    def body() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()

    for index, result in enumerate([0.2, 0.4, 0.3, 0.5, 0.1, 0.6]):
        watch.step(body)
        val_acc = result
        val_loss = 0.5 + val_acc
        if val_acc > best_metric if is_higher else val_acc < best_metric:
            best_metric, best_epoch = val_acc, index
            if notes_more:
                best_loss = val_loss
    watch.detach()
    assert best_epoch and best_loss
    return [(f.rule, f.step, f.where) for f in watch.findings]


def test_the_best_that_a_loop_keeps_in_a_variable():
    assert chosen(0.0, is_higher=True) == chosen(-math.inf, is_higher=True, notes_more=True) == []
    assert chosen(math.inf, is_higher=False, notes_more=True) == []  # lower losses come with it
    for first in (1e8, math.inf, 1.0):
        assert chosen(first, is_higher=False) == [("metric-direction", 2, "val_acc")]


def test_nothing_stands_in_for_torch_once_the_watch_is_gone():
    kinds = (ReduceLROnPlateau, torch.utils.data.dataloader._BaseDataLoaderIter)
    everybody = (LOADERS, PLATEAUS)
    for place in everybody:
        place._listeners.clear()  # watches of other tests that something still has
        place.forget(Loop())
    loop = Loop()
    loop.run(train, 2)
    loop.watch.detach()
    assert not any(place.stand_in.is_there for place in everybody)
    assert "contracts" not in ReduceLROnPlateau.step.__module__ and "contracts" not in kinds[1].__next__.__module__


# Batches


def batches(loader: DataLoader[Any], num: int, *, anew: bool) -> list[Any]:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = Watch(model, optimizer, incidents=None)

    def body(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    iterator = iter(loader)
    for _ in range(num):
        try:
            x, y = next(iter(loader)) if anew else next(iterator)
        except StopIteration:
            iterator = iter(loader)
            x, y = next(iterator)
        watch.step(lambda x=x, y=y: body(x, y), batch={"x": x, "y": y})
    watch.detach()
    return watch.findings


def test_the_first_batch_again_and_again():
    rows = TensorDataset(torch.randn(64, 8), torch.arange(64) % 4)
    (found,) = batches(DataLoader(rows, 16), 6, anew=True)
    assert (found.rule, found.step, found.where) == ("batch-repeats", 2, "x")
    again = batches(DataLoader(rows, 16), 9, anew=False)
    assert [one.severity for one in again] == ["warning"] and "in the same order" in again[0].evidence
    assert batches(DataLoader(rows, 16, shuffle=True), 9, anew=False) == []
    assert batches(DataLoader(rows, 64), 6, anew=False) == []  # an epoch is one batch


def test_loaders_are_heard_though_another_has_put_its_own_back(monkeypatch: pytest.MonkeyPatch):
    kind, keeper = torch.utils.data.dataloader._BaseDataLoaderIter, Loop()
    own = kind.__next__
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__next__", lambda iterator: own(iterator))
        keeper.run(train, 2)
    rows = TensorDataset(torch.randn(64, 8), torch.arange(64) % 4)
    assert [one.rule for one in batches(DataLoader(rows, 16), 6, anew=True)] == ["batch-repeats"]
    keeper.watch.detach()


def test_pictures_of_bytes_and_times_of_zero_are_worth_a_look():
    class Seen(Loop):
        def run(self, body: Any = train, num_steps: int = 5) -> Any:
            for self.index in range(num_steps):
                self.x, self.y = torch.randn(16, 8), torch.randint(0, 4, (16,))
                self.watch.step(lambda: body(self), batch=given())
            return [(f.rule, f.severity, f.where) for f in self.watch.findings]

    picture = torch.rand(4, 3, 8, 8)

    def bytes_alone() -> dict[str, Tensor]:
        return {"picture": (torch.rand(4, 3, 8, 8) * 255).floor()}

    given = bytes_alone
    assert Seen().run() == [("input-out-of-range", "warning", "picture")]

    def times() -> dict[str, Tensor]:
        return {"picture": picture + torch.rand(4, 1, 1, 1), "timesteps": torch.zeros(4), "weight": torch.zeros(4)}

    given = times
    assert Seen().run() == [("constant-input", "warning", "timesteps")]


class Labelled(nn.Module):
    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.net, self.embed, self.uses = Net(), nn.Embedding(4, 8), uses

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        return self.net(x + self.embed(kinds) if self.uses else x)


@pytest.mark.parametrize("uses", [True, False])
def test_an_integer_input_that_is_not_used(uses: bool):
    loop = Loop(Labelled(uses))

    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()
        F.cross_entropy(loop.model(loop.x, loop.y), torch.zeros(16, dtype=torch.long)).backward()
        loop.optimizer.step()

    if not uses:
        loop.model.embed.requires_grad_(False)
    assert said(loop, body) == (set() if uses else {("input-without-influence", "y")})
