"""Training samples that are changed: which edit stays true under what, and that each place has its own draw."""

from typing import Any

import pytest
import torch

from shadowlab.errors import UserError
from shadowlab.settings import AugmentConfig
from shadowlab.tasks.editing import EDITS, EditingSample, cast
from shadowlab.tasks.editing.augmentation import EditingAugmentation


def sample() -> EditingSample:
    torch.manual_seed(0)
    target, mask = torch.rand(3, 16, 16), (torch.rand(1, 16, 16) > 0.5).float()
    gains = torch.tensor([1.3, 1.0, 0.8])
    return EditingSample("a", "b", cast(target, gains), target, mask, torch.ones_like(mask), gains)


def augmented(edit: str, seed: int = 0, **settings: float) -> EditingAugmentation:
    return EditingAugmentation(AugmentConfig(**settings), seed, EDITS[edit])  # type: ignore[arg-type,index]


def test_an_input_is_its_target_under_gains_that_are_told() -> None:
    own, augmentation = sample(), augmented("white-balance", cast=0.5)
    stops = []
    for position in range(200):
        found = augmentation.sample(own, position)
        assert torch.equal(found.input, cast(own.target, found.gains)) and torch.equal(found.target, own.target)
        assert found.gains[1] == 1
        stops.append(torch.log2(found.gains[[0, 2]]))
    drawn = torch.stack(stops)
    assert drawn.abs().max() <= 0.5 and drawn.min() < -0.45 and drawn.max() > 0.45
    assert drawn.mean(dim=0).abs().max() < 0.08 and abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.2
    assert len({round(float(one), 6) for one in drawn.flatten()}) > 390


def test_a_draw_belongs_to_seed_and_place_alone() -> None:
    own = sample()
    first = augmented("white-balance", cast=0.5).sample(own, 7)
    assert torch.equal(first.input, augmented("white-balance", cast=0.5).sample(own, 7).input)
    assert not torch.equal(first.input, augmented("white-balance", seed=1, cast=0.5).sample(own, 7).input)
    both = [augmented("white-balance", cast=0.5, flip=share).sample(own, 7) for share in (0.0, 1.0)]
    assert torch.equal(both[0].gains, both[1].gains)  # switching one on changes no other draw
    assert torch.equal(both[0].input.flip(-1), both[1].input)


@pytest.mark.parametrize("edit", list(EDITS))
def test_all_pictures_are_mirrored_together(edit: str) -> None:
    own = sample()
    found = augmented(edit, flip=1.0).sample(own, 3)
    for name in ("input", "target", "mask", "valid"):
        assert torch.equal(getattr(found, name), getattr(own, name).flip(-1))


@pytest.mark.parametrize(
    ("edit", "settings", "said"),
    [
        ("object-removal", {"cast": 0.5}, "this model is one of object-removal"),
        ("paint-to-image", {"cast": 0.5}, "this model is one of paint-to-image"),
        ("white-balance", {"brightness": 0.5}, "data.augment.brightness"),
        ("white-balance", {"channel_order": 0.5}, "data.augment.channel_order"),
    ],
)
def test_what_would_make_an_edit_untrue_is_refused(edit: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        augmented(edit, **settings)
