"""Each tensor that trains has one owner: faults of the optimizer's list, of freezing and of wrapping, by name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shadowlab.stages.check_forward.ownership import ownership
from shadowlab.training.trainee import Trainee
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_hub_unet(tmp_path_factory.mktemp("unet"))


def _groups(trainee: Trainee) -> list[Any]:
    return trainee.optimizer.param_groups[0]["params"]


def _twice(trainee: Trainee) -> None:
    _groups(trainee).append(_groups(trainee)[3])


def _stranger(trainee: Trainee) -> None:
    _groups(trainee).append(torch.nn.Parameter(torch.zeros(2)))


def _replaced(trainee: Trainee) -> None:
    """As a conv_in that was widened after the optimizer had been built."""
    trainee.unet.conv_in = copy.deepcopy(trainee.unet.conv_in)


def _frozen(trainee: Trainee) -> None:
    trainee.unet.mid_block.requires_grad_(False)


def _another(trainee: Trainee) -> None:
    trainee.model = copy.deepcopy(trainee.unet)


ONE_GROUP, TRAINS, ONE_MODEL = range(3)


def test_a_sound_trainee_passes(folder: Path) -> None:
    assert all(check.passed for check in ownership(tiny.trainee_of(folder), ("*",)))
    part = tiny.trainee_of(folder, trains=lambda name: name.startswith("conv_in."))
    assert all(check.passed for check in ownership(part, ("conv_in.*",)))


@pytest.mark.parametrize(
    ("change", "failed", "words"),
    [
        (lambda t: _groups(t).pop(0), {ONE_GROUP}, "conv_in.weight in no group"),
        (_twice, {ONE_GROUP}, "twice"),
        (_stranger, {ONE_GROUP}, "1 tensors that are not the model's"),
        (_replaced, {ONE_GROUP}, "conv_in.weight in no group"),
        (_frozen, {ONE_GROUP, TRAINS}, "mid_block"),
        (_another, {ONE_MODEL}, "two models"),
    ],
    ids=["left out", "twice", "stranger", "replaced afterwards", "frozen", "two models"],
)
def test_a_wrong_owner_is_named(folder: Path, change: Callable[[Trainee], Any], failed: set[int], words: str) -> None:
    trainee = tiny.trainee_of(folder)
    change(trainee)
    checks = ownership(trainee, ("*",))
    assert {number for number, check in enumerate(checks) if not check.passed} == failed
    assert any(words in check.seen for check in checks)


def test_what_trains_against_the_task(folder: Path) -> None:
    check = ownership(tiny.trainee_of(folder), ("*.attn1.*",))[TRAINS]
    assert not check.passed
    assert "conv_in.bias trains" in check.seen
