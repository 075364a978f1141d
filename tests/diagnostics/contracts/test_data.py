"""Batches: constant, out of range, repeated, drawn twice; results that choose the best checkpoint."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diagnostics import CONTRACTS
from diagnostics.contracts.directions import direction_of
from tests.diagnostics.contracts.loops import Loop, first, train


def images(index: int) -> dict[str, Tensor]:
    return {"image": torch.rand(16, 3, 8, 8), "y": torch.randint(0, 4, (16,))}


class Seen(Loop):
    """Trains on `x`; `batch=` is what a test makes of it."""

    def __init__(self, batch: Any) -> None:
        super().__init__()
        self.batch = batch

    def run(self, body: Any = train, num_steps: int = 14) -> Any:
        for self.index in range(num_steps):
            self.x, self.y = torch.randn(16, 8), torch.randint(0, 4, (16,))
            self.watch.step(lambda: body(self), batch=self.batch(self.index))
        return self.watch.findings


def test_images_as_they_should_be_are_silent():
    assert Seen(images).run() == []


def test_constant_images():
    found = Seen(lambda index: images(index) | {"image": torch.full((16, 3, 8, 8), 0.25)}).run()
    assert first(found) == {"constant-input": 2}


def test_images_in_another_range():
    found = Seen(lambda index: images(index) | ({"image": 255 * torch.rand(16, 3, 8, 8)} if index == 9 else {})).run()
    assert first(found) == {"input-out-of-range": 9}
    found = Seen(lambda index: {"image": (1 if index < 9 else 1 / 255) * torch.rand(16, 3, 8, 8)}).run()
    assert first(found) == {"input-out-of-range": 9}


def test_labels_that_are_all_the_same():
    assert first(Seen(lambda index: images(index) | {"y": torch.ones(16, dtype=torch.long)}).run()) == {
        "labels-constant": 2
    }


def test_batches_that_begin_to_repeat():
    kept = images(0)
    found = Seen(lambda index: images(index) if index < 6 else {k: v.clone() for k, v in kept.items()}).run()
    assert first(found) == {"batch-repeats": 9}


def test_inputs_that_repeat_under_other_labels():
    kept = images(0)["image"]
    assert first(Seen(lambda index: images(index) | {"image": kept.clone()}).run()) == {"batch-repeats": 2}


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("key", ["noise", "image"])
def test_workers_that_draw_the_same(num_workers: int, key: str):
    drawn: dict[int, Tensor] = {}

    def batch(index: int) -> dict[str, Tensor]:
        draw = drawn.setdefault(index // num_workers, torch.randn(16, 3, 8, 8))
        return {"image": torch.rand(16, 3, 8, 8) + index, "other": torch.rand(4), key: draw.clone()}

    assert first(Seen(batch).run()) == {"workers-repeat": 2 * num_workers - (key == "noise")}


@settings(max_examples=20)  # each is a watched run
@given(st.lists(st.integers(0, 3), min_size=6, max_size=14))
def test_batches_that_differ_from_their_neighbours_are_no_alarm(order: list[int]):
    """Whatever returns later, a second epoch for instance: where it has the order of the first, that is a warning."""
    order = [one for number, one in enumerate(order) if number == 0 or one != order[number - 1]]
    pool = [images(number) for number in range(4)]
    loop = Seen(lambda index: {name: tensor.clone() for name, tensor in pool[order[index]].items()})
    found = loop.run(num_steps=len(order))
    assert all(one.severity == "warning" and "in the same order" in one.evidence for one in found)
    loop.watch.detach()  # the next example's loop would be heard by this watch, too


# Results


@pytest.mark.parametrize(
    ("name", "higher", "results", "is_wrong"),
    [
        ("accuracy", None, [(0.5, True), (0.4, True)], True),
        ("accuracy", None, [(0.5, True), (0.6, False)], True),
        ("accuracy", None, [(0.5, True), (0.6, True), (0.55, False)], False),
        ("val_loss", None, [(0.5, True), (0.4, True), (0.45, False)], False),
        ("val_loss", None, [(0.5, True), (0.6, True)], True),
        ("score", None, [(0.5, True), (0.4, True), (0.9, True)], False),
        ("score", True, [(0.5, True), (0.4, True)], True),
        ("score", False, [(0.5, True), (0.4, True)], False),
    ],
)
def test_the_best_result_is_kept(name: str, higher: bool | None, results: list[tuple[float, bool]], is_wrong: bool):
    loop = Loop()
    loop.run(train, 1)
    for value, kept in results:
        loop.watch.metric(name, value, higher_is_better=higher, kept=kept)
    assert [found.rule for found in loop.watch.findings] == ["metric-direction"] * is_wrong


def test_directions_that_names_have():
    assert [direction_of(name) for name in ("val/acc", "soft_iou", "rmse", "loss", "steps", "accuracy_loss")] == [
        True,
        True,
        False,
        False,
        None,
        None,
    ]


def test_every_contract_says_when_why_and_what_to_do():
    assert len(CONTRACTS) >= 30
    for name, one in CONTRACTS.items():
        assert name == one.name and one.severity in ("alarm", "warning")
        assert all(len(text) > 15 for text in (one.threshold, one.source, one.advice)), name


def test_a_small_input_of_zeros_is_a_warning_and_one_that_may_be_zero_is_not():
    def sizes(index: int) -> dict[str, Tensor]:
        return images(index) | {
            "size": torch.zeros(16),
            "angles": torch.zeros(16, 2),
            "crop_offset": torch.zeros(16, 2),
        }

    found = Seen(sizes).run()
    assert {(one.rule, one.severity, one.where, one.step) for one in found} == {
        ("constant-input", "warning", "size", 2),
        ("constant-input", "warning", "angles", 2),
    }
    ones = Seen(lambda index: images(index) | {"scale": torch.ones(16), "size": torch.rand(16)})
    assert ones.run() == []


def test_pictures_that_were_divided_twice_are_a_warning_and_dark_ones_are_not():
    (found,) = Seen(lambda index: {"image": torch.rand(16, 3, 8, 8) / 255, "y": torch.arange(16) % 4}).run()
    assert (found.rule, found.severity, found.where, found.step) == ("input-out-of-range", "warning", "image", 1)
    assert Seen(lambda index: {"image": torch.rand(16, 3, 8, 8) / 50, "y": torch.arange(16) % 4}).run() == []
    assert Seen(lambda index: {"image": torch.randn(16, 3, 8, 8) / 255, "y": torch.arange(16) % 4}).run() == []
