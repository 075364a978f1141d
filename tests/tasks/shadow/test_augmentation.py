"""Augmentation: what is drawn is a function of seed and position, and every label stays true."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shadowlab.data.decoding import BACKGROUND
from shadowlab.data.loader import endless_batches
from shadowlab.data.sample_set import SampleSet
from shadowlab.errors import UserError
from shadowlab.settings.augment import AugmentConfig
from shadowlab.settings.files import load_config
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow.augmentation import ShadowAugmentation, blurred, mirrored
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.light import check_light, light_position, mirrored_light
from shadowlab.tasks.shadow.samples import Batch, Sample, collate
from shadowlab.tasks.shadow.task import ShadowTask
from shadowlab.training.source import open_source
from shadowlab.training.trainee import build_unet
from tests import tiny

LIGHTS = st.tuples(st.floats(0, 45, width=32), st.floats(0, 360, width=32), st.floats(2, 8, width=32))


@pytest.fixture(scope="module")
def dataset(stage_folder: dict[str, Path]) -> SampleSet:
    return open_dataset(stage_folder["data"], 32)


@given(LIGHTS)
def test_a_mirrored_light_stands_at_minus_x(light: tuple[float, float, float]) -> None:
    found = mirrored_light(torch.tensor(light))
    theta, phi, size = found.tolist()
    x, y, z = light_position(light[0], light[1])
    assert light_position(theta, phi) == pytest.approx((-x, y, z), abs=1e-5)
    assert (theta, size) == pytest.approx((light[0], light[2])) and 0 <= phi <= 360
    again = mirrored_light(found)
    assert math.remainder(float(again[1]) - light[1], 360) == pytest.approx(0, abs=5e-5)


def test_mirrored_twice_a_sample_is_itself(dataset: SampleSet) -> None:
    sample = dataset[1]
    once = mirrored(sample)
    for name in ("object_image", "mask", "shadow"):
        picture = getattr(sample, name)
        assert not torch.equal(getattr(once, name), picture)
        assert torch.equal(getattr(once, name)[..., 0], picture[..., -1])
        assert torch.equal(getattr(mirrored(once), name), picture)
    torch.testing.assert_close(mirrored(once).light, sample.light, rtol=0, atol=5e-5)
    assert (once.object_image[:, once.mask[0] == 0] == 0).all(), "the background goes with the mask"


def stream(dataset: SampleSet, augment: AugmentConfig | None, count: int, **named: int) -> list[Batch]:
    given: dict[str, int] = {"first_position": 0, "accumulation": 1, "rank": 0, "num_processes": 1, "num_workers": 0}
    batches = endless_batches(
        dataset,
        range(len(dataset)),
        collate=collate,
        seed=5,
        batch_size=2,
        read=None if augment is None else _Reading(dataset, ShadowAugmentation(augment, 5)),
        **given | named,
    )
    return list(islice(batches, count))


class _Reading:
    def __init__(self, dataset: SampleSet, augmentation: ShadowAugmentation) -> None:
        self._dataset, self._augmentation = dataset, augmentation

    def __call__(self, i: int, position: int) -> Sample:
        return self._augmentation.sample(self._dataset[i], position)


def equal(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return all(
        one.ids == other.ids
        and all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("object_image", "mask", "shadow", "light"))
        for one, other in zip(first, second, strict=True)
    )


EVERYTHING = AugmentConfig(
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    colour=0.3,
    blur=2.0,
    intensity=0.6,
    label_noise_degrees=2.0,
    label_noise_size=0.5,
)


def test_workers_processes_and_a_resume_draw_the_same(dataset: SampleSet) -> None:
    whole = stream(dataset, EVERYTHING, 12)
    assert not equal(whole, stream(dataset, None, 12))
    torch.rand(7)  # the global generator takes no part
    assert equal(whole, stream(dataset, EVERYTHING, 12, num_workers=2))
    assert equal(whole[5:], stream(dataset, EVERYTHING, 7, first_position=10))
    shared = [stream(dataset, EVERYTHING, 6, rank=rank, num_processes=2) for rank in (0, 1)]
    assert equal(whole, [batch for step in zip(*shared, strict=True) for batch in step])


def test_a_sample_is_seen_from_both_sides() -> None:
    """The coin is thrown at each position, not once for a sample."""
    augmentation = ShadowAugmentation(AugmentConfig(flip=0.5), 0)
    sides = [augmentation.variant(position) for position in range(4000)]
    assert sides.count("mirrored") / 4000 == pytest.approx(0.5, abs=0.03)
    for i in range(20):
        assert len({sides[epoch * 20 + i] for epoch in range(20)}) == 2
    always, never = (ShadowAugmentation(AugmentConfig(flip=flip), 0) for flip in (1, 0))
    assert {always.variant(p) for p in range(50)} == {"mirrored"} and {never.variant(p) for p in range(50)} == {""}


@pytest.mark.parametrize("name", ["brightness", "contrast", "colour", "blur"])
def test_what_is_for_the_object_changes_nothing_else(dataset: SampleSet, name: str) -> None:
    sample = dataset[1]
    changed = ShadowAugmentation(AugmentConfig(**{name: 0.9}), 0).sample(sample, 3)
    assert torch.equal(changed.mask, sample.mask) and torch.equal(changed.shadow, sample.shadow)
    assert torch.equal(changed.light, sample.light)
    inside = sample.mask[0] > 0
    assert (changed.object_image[:, ~inside] == BACKGROUND).all()
    assert not torch.equal(changed.object_image[:, inside], sample.object_image[:, inside])
    assert changed.object_image.abs().max() <= 1


def test_each_is_what_it_is_called(dataset: SampleSet) -> None:
    """Read back from the pictures: factors of the values inside the mask, in the range that is asked for."""
    mask = torch.ones(1, 8, 8)
    before = torch.linspace(0.3, 0.5, 3 * 64).view(3, 8, 8)
    sample = replace(dataset[1], object_image=before * 2 - 1, mask=mask)

    def after(position: int, **settings: float) -> torch.Tensor:
        return (ShadowAugmentation(AugmentConfig(**settings), 1).sample(sample, position).object_image + 1) / 2

    bright = torch.stack([(after(p, brightness=0.4) / before).flatten() for p in range(60)])
    assert (
        bright.amax(dim=1) - bright.amin(dim=1)
    ).max() < 1e-5 and 0.6 <= bright.min() < 0.7 < 1.3 < bright.max() <= 1.4
    tints = torch.stack([(after(p, colour=0.4) / before).flatten(1) for p in range(60)])
    assert (tints.amax(dim=2) - tints.amin(dim=2)).max() < 1e-5 and 0.6 <= tints.min() < 0.7 < 1.3 < tints.max() <= 1.4
    assert (tints[:, 0, 0] - tints[:, 1, 0]).abs().max() > 0.3, "each channel has its own factor"
    for p in range(10):
        other = after(p, contrast=0.4)
        assert float(other.mean()) == pytest.approx(float(before.mean()), abs=1e-5)
        assert 0.6 <= float(other.std() / before.std()) <= 1.4


def test_blur_is_a_gaussian_that_sees_the_object_alone() -> None:
    point = torch.zeros(3, 21, 21)
    point[:, 10, 10] = 1.0
    everywhere = torch.ones(1, 21, 21)
    spread = blurred(point, everywhere, 1.5)[0]
    rows, columns = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(21.0) - 10, indexing="ij")
    wanted = torch.exp(-(rows**2 + columns**2) / (2 * 1.5**2)) / (2 * math.pi * 1.5**2)
    assert float((spread - wanted).abs().max()) < 1e-3
    mask = torch.zeros(1, 21, 21)
    mask[:, 5:15, 5:12] = 1
    picture = torch.rand(3, 21, 21, generator=torch.Generator().manual_seed(0))
    other = torch.where(mask > 0, picture, float("nan"))
    assert torch.equal(blurred(picture, mask, 2.0), blurred(other, mask, 2.0))
    flat = blurred(torch.where(mask > 0, 0.7, 0.0).expand(3, -1, -1), mask, 5.0)
    torch.testing.assert_close(flat, torch.where(mask > 0, 0.7, 0.0).expand(3, -1, -1))
    assert torch.equal(blurred(picture, mask, 0.0), torch.where(mask > 0, picture, 0.0))


def test_the_model_is_told_the_intensity_of_its_target(
    stage_folder: dict[str, Path], tmp_path: Path, dataset: SampleSet
) -> None:
    """A fourth condition: told in training, 1 everywhere else; another model, by its hash and its first projection."""
    words = ("data.augment.intensity=0.75", "model.weights=random")
    config, plain = (tiny.stage_config(stage_folder, tmp_path, *w) for w in (words, words[1:]))
    assert config.model_hash() != plain.model_hash()
    task = open_task(config, torch.device("cpu"))
    assert task.spec.embedding_dim == 1024 and ShadowTask.spec.embedding_dim == 768
    sample, augmentation = dataset[1], task.augmentation
    assert augmentation is not None
    found = [augmentation.sample(sample, position) for position in range(40)]
    for one in found:
        assert torch.equal(one.light[:3], sample.light)
        torch.testing.assert_close(one.shadow, sample.shadow * one.light[3])
    drawn = torch.stack([one.light[3] for one in found])
    assert 0.25 <= drawn.min() < 0.35 and 0.9 < drawn.max() <= 1
    told = [task.encode(collate([one])).conditions.embedding for one in (sample, found[0], found[1])]
    full = task.encode(collate([replace(sample, light=torch.cat([sample.light, torch.ones(1)]))]))
    assert torch.equal(told[0], full.conditions.embedding), "without a word, 1"
    assert torch.equal(told[0][:, :768], told[1][:, :768]) and not torch.equal(told[1], told[2])
    batch = collate([sample])
    probes = {probe.name: probe for probe in task.probes(batch, task.encode(batch), "near")}
    assert list(probes) == ["theta", "phi", "size", "intensity"]
    assert {curve.key for curve in task.charts[-1].curves} == {f"response_{name}" for name in probes}
    shared = build_unet(config, task.spec, torch.device("cpu")).class_embedding.linear_1.weight
    assert shared.shape[1] == 1024


@given(LIGHTS, st.integers(0, 1000))
def test_label_noise_stays_in_the_ranges_and_near(light: tuple[float, float, float], position: int) -> None:
    noisy = AugmentConfig(label_noise_degrees=2.0, label_noise_size=0.5)
    numbers = {"light": torch.tensor(light)}
    found = ShadowAugmentation(noisy, 0).numbers(numbers, position)["light"]
    check_light(*found.tolist(), where="label noise")
    assert abs(float(found[0]) - light[0]) <= 2.001 and abs(float(found[2]) - light[2]) <= 0.501
    assert abs(math.remainder(float(found[1]) - light[1], 360)) <= 2.001
    assert not torch.equal(found, numbers["light"])


def test_one_more_change_leaves_the_other_draws(dataset: SampleSet) -> None:
    flips = [ShadowAugmentation(augment, 0).variant(9) for augment in (AugmentConfig(flip=0.5), EVERYTHING)]
    assert flips[0] == flips[1]
    one, other = (ShadowAugmentation(a, 0).sample(dataset[2], 9) for a in (AugmentConfig(flip=0.5, blur=1), EVERYTHING))
    assert torch.equal(one.mask, other.mask)


@pytest.mark.parametrize("name", ["brightness", "contrast", "colour", "blur", "intensity"])
def test_what_no_cache_can_hold_is_refused_with_one(name: str) -> None:
    words = [f"data.augment.{name}=0.5", "data.augment.flip=0.5"]
    load_config(assignments=words)
    with pytest.raises(UserError, match=f"changes {name} anew each time .* or leave data.latents out") as caught:
        load_config(assignments=["data.latents=latents", *words])
    assert str(caught.value).startswith("data.latents: ") and "\n" not in str(caught.value)
    load_config(assignments=["data.latents=latents", "data.augment.flip=0.5", "data.augment.label_noise_size=1"])


def test_only_train_changes_samples(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """A source for others, and a read outside the stream, give samples as they are."""
    config = tiny.stage_config(stage_folder, tmp_path, "data.augment.flip=1")
    task = open_task(config, torch.device("cpu"))
    dataset = task.open_data()
    assert open_source(config, dataset, task, range(8)).augmented is None
    source = open_source(config, dataset, task, range(8), augmented=True)
    assert source.augmented is not None
    assert torch.equal(source.augmented(2, 0).shadow, dataset[2].shadow.flip(-1))
    plain = open_task(tiny.stage_config(stage_folder, tmp_path), torch.device("cpu"))
    assert plain.augmentation is None
    wanted = open_source(config, dataset, plain, range(8)).read([2])
    assert torch.equal(source.read([2]).data, wanted.data)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("data.augment.rotation=5", r"data\.augment\.rotation`: a rotated picture shows ground that is not level"),
        ("data.augment.vertical_flip=1", "hangs from its ground"),
        ("data.augment.shift=0.1", r"0\.93"),
        ("data.augment.zoom=1.1", r"0\.91"),
        ("data.augment.flipp=1", r"Did you mean `data\.augment\.flip`\?"),
        ("data.augment.flip=1.5", "less than or equal to 1; got 1.5"),
        ("data.augment=flip", "is a section"),
    ],
)
def test_what_would_be_untrue_is_refused_with_the_reason(assignment: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_config(assignments=["seed=1", assignment])
    assert str(caught.value).startswith(f"--set {assignment}: ") and "\n" not in str(caught.value)
