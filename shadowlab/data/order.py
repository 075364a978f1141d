"""Sampling without state: the data position is a number.

The endless stream is epoch after epoch, each a permutation that depends on (seed, epoch) alone. Resuming,
replaying one step and changing the number of workers all read the same stream.
"""

from functools import lru_cache

from torch import Tensor

from shadowlab.seeding import permutation


@lru_cache(maxsize=4)  # consecutive steps stay in one epoch
def _epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """int64 (length,): the order of one epoch."""
    return permutation(length, seed, "order", epoch)


def sample_indices(position: int, count: int, length: int, seed: int) -> list[int]:
    """Items `position` .. `position + count - 1` of the endless stream of shuffled epochs.

    Args:
        position: number of samples drawn before, at least 0.
        count: how many to draw, at least 0.
        length: number of samples in the data set, at least 1.
        seed: any integer.

    Returns:
        `count` indices in [0, length).

    Raises:
        ValueError: a number is below its least value.
    """
    if position < 0 or count < 0 or length < 1:
        raise ValueError(f"need position >= 0, count >= 0, length >= 1; got {position}, {count}, {length}")
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(position + len(indices), length)
        remaining = count - len(indices)
        indices += _epoch_order(length, seed, epoch)[offset : offset + remaining].tolist()
    return indices
