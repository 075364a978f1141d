"""Randomness as a function of its arguments: the same today, tomorrow and on every machine."""

import random

import torch

from shadowlab.seeding import derive_seed, generator, normal, permutation


def test_seeds_are_written_in_stone() -> None:
    """If this changes, no run can be resumed or compared with an earlier one."""
    assert derive_seed(0, "noise", 5) == 2054592704758940298
    assert permutation(5, 0, "order", 0).tolist() == torch.randperm(5, generator=generator(0, "order", 0)).tolist()


def test_every_argument_counts() -> None:
    seeds = [derive_seed(0, "a"), derive_seed(1, "a"), derive_seed(0, "b"), derive_seed(0, "a", 0)]
    seeds += [derive_seed(0, "a", 0, 1), derive_seed(0, "a", 1, 0), derive_seed(0, "a", 10), derive_seed(0, "a", "x")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_global_state_has_no_say_and_is_left_alone() -> None:
    torch.manual_seed(1)
    random.seed(1)
    before, first = torch.get_rng_state(), normal((3,), 0, "x", 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(normal((3,), 0, "x", 1), first)


def test_neighbouring_noises_are_unrelated() -> None:
    noises = torch.stack([normal((4096,), 0, "noise", position) for position in range(8)])
    correlation = torch.corrcoef(noises) - torch.eye(8)
    assert correlation.abs().max() < 5 / 64  # 5 sigma
    assert noises.mean().abs() < 5 / 181
