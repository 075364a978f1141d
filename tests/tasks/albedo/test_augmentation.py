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


def pair(height: int = 4, width: int = 6) -> AlbedoSample:
    """Every value another one; a beauty that is half its albedo, and valid pixels on the left alone."""
    albedo = torch.arange(3 * height * width).reshape(3, height, width) / (3 * height * width)
    valid = torch.zeros(1, height, width)
    valid[..., : width // 3] = 1
    return AlbedoSample("a", "object", albedo / 2, albedo, valid, "linear")


def channels(picture: Tensor) -> list[float]:
    return picture.mean(dim=(1, 2)).tolist()


@given(st.integers(0, 2**32), st.integers(0, 2**40), st.floats(0, 1), st.floats(0, 1))
def test_a_changed_pair_is_a_pair(seed: int, position: int, flip: float, order: float) -> None:
    augmentation = AlbedoAugmentation(AugmentConfig(flip=flip, channel_order=order), seed)
    sample, made = pair(), augmentation.sample(pair(), position)
    assert torch.equal(made.beauty, made.albedo / 2)  # the light is what it was
    assert sorted(made.albedo.flatten().tolist()) == sorted(sample.albedo.flatten().tolist())
    is_mirrored = bool(made.valid[0, 0, -1])
    back = made.albedo.flip(-1) if is_mirrored else made.albedo
    assert sorted(channels(back)) == sorted(channels(sample.albedo))
    variant = augmentation.variant(position)
    assert variant == "" or variant in augmentation.variants
    assert (MIRRORED in variant) == is_mirrored


def test_all_variants_are_different_and_all_are_drawn_as_often_as_they_should() -> None:
    augmentation = AlbedoAugmentation(AugmentConfig(flip=0.5, channel_order=5 / 6), seed=1)
    everything = ("", *augmentation.variants)
    assert len(everything) == 12
    assert len({tuple(augmentation.as_variant(pair(), one).albedo.flatten().tolist()) for one in everything}) == 12
    drawn = Counter(augmentation.variant(position) for position in range(6000))
    assert set(drawn) == set(everything)
    assert all(400 < count < 600 for count in drawn.values())


def test_one_key_changes_no_draw_of_the_other() -> None:
    alone = AlbedoAugmentation(AugmentConfig(flip=0.5), seed=1)
    both = AlbedoAugmentation(AugmentConfig(flip=0.5, channel_order=0.5), seed=1)
    for position in range(200):
        assert (MIRRORED in alone.variant(position)) == (MIRRORED in both.variant(position))
    assert alone.variants == (MIRRORED,)
    assert AlbedoAugmentation(AugmentConfig(channel_order=0.5), seed=1).variants == ORDERS


@pytest.mark.parametrize("key", ["brightness", "contrast", "colour", "blur", "intensity", "label_noise_degrees"])
def test_what_would_make_another_albedo_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"data\.augment\.{key}: the task albedo has data\.augment\.flip and"):
        AlbedoAugmentation(AugmentConfig(**{key: 0.5}), seed=1)


def test_shadows_refuse_the_order_of_channels() -> None:
    with pytest.raises(UserError, match=r"data\.augment\.channel_order: the task shadow has data\.augment\.colour"):
        open_task(load_config(assignments=["data.augment.channel_order=0.5"]))
