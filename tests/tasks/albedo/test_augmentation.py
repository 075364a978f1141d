"""Changed pairs are pairs: what is done to the beauty is done to the albedo, whatever the seed and the place."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.settings import AugmentConfig, load_config
from shadowlab.tasks import open_task
from shadowlab.tasks.albedo.augmentation import MIRRORED, ORDERS, AlbedoAugmentation
from shadowlab.tasks.albedo.samples import AlbedoSample


def pair(side: int = 6) -> AlbedoSample:
    """Every value another one; a beauty that is half its albedo, and valid where the values are even."""
    albedo = torch.arange(3 * side**2).reshape(3, side, side) / (3 * side**2)
    valid = (torch.arange(side**2).reshape(1, side, side) % 2 == 0).float()
    return AlbedoSample("a", "object", albedo / 2, albedo, valid, "linear")


SHARE = st.floats(0, 1)


@given(st.integers(0, 2**32), st.integers(0, 2**40), SHARE, SHARE, SHARE)
def test_a_changed_pair_is_a_pair(seed: int, position: int, flip: float, turn: float, order: float) -> None:
    """Every pixel takes its light, its albedo and its validity with it."""
    augmentation = AlbedoAugmentation(AugmentConfig(flip=flip, quarter_turn=turn, channel_order=order), seed)
    sample, made = pair(), augmentation.sample(pair(), position)
    assert torch.equal(made.beauty, made.albedo / 2)
    pixels = {tuple(one.tolist()): float(is_valid) for one, is_valid in zip(*rows(sample), strict=True)}
    for one, is_valid in zip(*rows(made), strict=True):
        assert pixels.pop(tuple(sorted(one.tolist()))) == float(is_valid)
    variant = augmentation.variant(position)
    assert variant == "" or variant in augmentation.variants
    assert torch.equal(made.albedo, augmentation.as_variant(sample, variant).albedo)


def rows(sample: AlbedoSample) -> tuple[Tensor, Tensor]:
    """Its pixels (n, 3), whose channels grow from red to blue as they are, and which are valid (n,)."""
    return sample.albedo.flatten(1).T, sample.valid.flatten()


def test_all_variants_are_different_and_all_are_drawn_as_often_as_they_should() -> None:
    augmentation = AlbedoAugmentation(AugmentConfig(flip=0.5, quarter_turn=0.75, channel_order=5 / 6), seed=1)
    everything = ("", *augmentation.variants)
    assert len(everything) == 48
    assert len({tuple(augmentation.as_variant(pair(), one).albedo.flatten().tolist()) for one in everything}) == 48
    drawn = Counter(augmentation.variant(position) for position in range(9600))
    assert set(drawn) == set(everything)
    assert all(130 < count < 275 for count in drawn.values())


def test_one_key_changes_no_draw_of_the_other() -> None:
    alone = AlbedoAugmentation(AugmentConfig(flip=0.5), seed=1)
    both = AlbedoAugmentation(AugmentConfig(flip=0.5, quarter_turn=0.5, channel_order=0.5), seed=1)
    for position in range(200):
        assert (MIRRORED in alone.variant(position)) == (MIRRORED in both.variant(position))
    assert alone.variants == (MIRRORED,)
    assert AlbedoAugmentation(AugmentConfig(channel_order=0.5), seed=1).variants == ORDERS


@pytest.mark.parametrize("key", ["brightness", "contrast", "colour", "blur", "intensity", "label_noise_degrees"])
def test_what_would_make_another_albedo_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"data\.augment\.{key}: the task albedo has data\.augment\.flip, quarter"):
        AlbedoAugmentation(AugmentConfig(**{key: 0.5}), seed=1)


def test_shadows_refuse_what_would_make_their_light_untrue() -> None:
    with pytest.raises(UserError, match=r"data\.augment\.quarter_turn: no light throws such a shadow"):
        open_task(load_config(assignments=["data.augment.quarter_turn=0.5"]))
    with pytest.raises(UserError, match=r"data\.augment\.channel_order: the task shadow has data\.augment\.colour"):
        open_task(load_config(assignments=["data.augment.channel_order=0.5"]))
