"""Randomness as a pure function of (seed, purpose, rank, step).

Nothing depends on how many numbers were drawn before, so resuming, replaying a step and watching it
all see the same noise. The idea of reseeding from the step counter is EDM2's (Karras et al., 2024).
"""

import hashlib
from collections.abc import Sequence

import torch


def derive_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """A 63-bit seed for one purpose. `counters` are usually (rank, step); any integers or names will do.

    SHA-256 rather than `hash()`: the same numbers under every interpreter version.
    """
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *counters: int | str) -> torch.Generator:
    """A fresh CPU generator. Drawing on the CPU makes the numbers equal on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *counters))


def normal(shape: Sequence[int], seed: int, purpose: str, *counters: int | str) -> torch.Tensor:
    """Standard normal float32 tensor of `shape` on the CPU."""
    return torch.randn(tuple(shape), generator=generator(seed, purpose, *counters))


def permutation(length: int, seed: int, purpose: str, *counters: int | str) -> torch.Tensor:
    """A random order of `range(length)`, int64 (length,)."""
    return torch.randperm(length, generator=generator(seed, purpose, *counters))
