"""Properties of the split by object and of the stateless order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowlab.data.order import sample_indices
from shadowlab.data.split import split_by_object
from shadowlab.errors import UserError

object_lists = st.lists(st.sampled_from([f"object_{i}" for i in range(12)]), min_size=2, max_size=60).filter(
    lambda names: len(set(names)) > 1
)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(-(2**40), 2**40)


@given(object_lists, fractions, seeds)
def test_split_shares_no_object_and_loses_no_sample(names: list[str], fraction: float, seed: int) -> None:
    split = split_by_object(names, fraction, seed)
    assert sorted(split.train + split.validation) == list(range(len(names)))
    assert split.train
    assert split.validation
    assert not {names[i] for i in split.train} & {names[i] for i in split.validation}


@given(object_lists, fractions, seeds, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order_of_samples(names: list[str], fraction: float, seed: int, random) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)
    held_out = {names[i] for i in split_by_object(names, fraction, seed).validation}
    assert {shuffled[i] for i in split_by_object(shuffled, fraction, seed).validation} == held_out


@given(fractions, seeds)
def test_split_holds_out_the_fraction_of_objects(fraction: float, seed: int) -> None:
    names = [f"object_{i // 3}" for i in range(150)]
    num_objects = len({names[i] for i in split_by_object(names, fraction, seed).validation})
    assert num_objects == min(max(round(fraction * 50), 1), 49)


def test_seeds_give_different_splits() -> None:
    names = [f"object_{i}" for i in range(50)]
    assert len({tuple(split_by_object(names, 0.1, seed).validation) for seed in range(20)}) > 15


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan"), 5])
def test_split_refuses_a_fraction_outside_0_and_1(fraction: float) -> None:
    with pytest.raises(UserError, match="validation_fraction"):
        split_by_object(["a", "b"], fraction, 0)


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a", "a"]])
def test_split_refuses_fewer_than_two_objects(names: list[str]) -> None:
    with pytest.raises(UserError, match="cannot split"):
        split_by_object(names, 0.5, 0)


lengths = st.integers(1, 40)


@given(lengths, seeds, st.integers(0, 30))
def test_every_epoch_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    assert sorted(sample_indices(epoch * length, length, length, seed)) == list(range(length))


@given(lengths, seeds, st.integers(0, 500), st.lists(st.integers(0, 60), max_size=6))
def test_chunks_are_the_stream(length: int, seed: int, position: int, counts: list[int]) -> None:
    """Resuming at any position reads on as if nothing had happened."""
    chunks, start = [], position
    for count in counts:
        chunks += sample_indices(start, count, length, seed)
        start += count
    assert chunks == sample_indices(position, sum(counts), length, seed)


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(sample_indices(epoch * 20, 20, 20, seed)) for epoch in range(10) for seed in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize("arguments", [(-1, 1, 5), (0, -1, 5), (0, 1, 0)])
def test_order_refuses_impossible_numbers(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="need position"):
        sample_indices(*arguments, seed=0)
