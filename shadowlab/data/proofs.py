"""Proofs of a run's samples before its first step: who trains and who is held out, and in which order they come."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from shadowlab.data.loader import planned_indices
from shadowlab.data.split import Split

_MOST = 200_000  # positions of the stream that are looked at
_LEAST = 8  # samples of which two orders are no chance to be the same: 1 in 40,320
_MOST_IDS = 64  # that a header names


def split_fault(split: Split, object_ids: Sequence[str], judged: Iterable[int]) -> str | None:
    """How training and validation mix, in words that name the place; None where they do not.

    Args:
        object_ids: of each sample, in the data set's order. judged: samples that the validation looks at.
    """
    train, held_out, judged = set(split.train), set(split.validation), list(judged)
    place = "shadowlab/data/split.py, split_by_object"
    if both := sorted(train & held_out):
        return f"{place}: sample {both[0]} of the data set and {len(both) - 1} more are in training and in validation"
    if len(train) != len(split.train) or len(held_out) != len(split.validation):
        return f"{place}: a sample is in its part of the split more than once"
    if train | held_out != set(range(len(object_ids))):
        return f"{place}: training and validation together are not the {len(object_ids)} samples of the data set"
    if not train or not held_out:
        return f"{place}: {'training' if not train else 'validation'} has no sample"
    trained = {object_ids[i] for i in train}
    if shared := sorted(trained & {object_ids[i] for i in held_out}):
        return f"{place}: object {shared[0]} and {len(shared) - 1} more are in training and in validation"
    if outside := [i for i in judged if i not in held_out]:
        return (
            f"shadowlab/stages/train/validation.py, validation_grid: sample {outside[0]}, which is validated on, is in "
            "the training set"
        )
    return None


def order_fault(length: int, seed: int, position: int, batch_size: int, accumulation: int, count: int) -> str | None:
    """What is wrong with the order in which `count` processes read `length` samples; None where nothing.

    From the epoch that `position` lies in on, two epochs are looked at as the loaders of all processes will read them:
    each sample once in each, in another order.
    """
    place = "shadowlab/data/loader.py and order.py"
    first = position - position % length
    step = batch_size * accumulation * count
    begin = first - first % step  # where a step begins, at or before the epoch
    wanted = min(first + 2 * length, first + _MOST) - begin
    ranks = [planned_indices(length, seed, begin, batch_size, accumulation, rank, count) for rank in range(count)]
    stream: dict[int, int] = {}
    for _ in range(-(-wanted // step)):
        for rank in ranks:
            for index, place_in_stream in (one for batch in islice(rank, accumulation) for one in batch):
                if place_in_stream in stream:
                    return f"{place}: two processes or micro-batches read position {place_in_stream} of the stream"
                stream[place_in_stream] = index
    order = [stream.get(place_in_stream) for place_in_stream in range(first, begin + wanted)]
    if None in order:
        return f"{place}: position {first + order.index(None)} of the stream is read by nobody"
    epochs = [order[:length], order[length : 2 * length]]
    for number, epoch in enumerate(epochs):
        twice, times = Counter(epoch).most_common(1)[0] if epoch else (None, 0)
        if times > 1:
            return f"{place}: epoch {first // length + number} draws sample {twice} of the training set more than once"
    if length >= _LEAST and len(epochs[1]) == length and epochs[0] == epochs[1]:
        return f"{place}: epochs {first // length} and {first // length + 1} have the same order"
    return None


def described_split(split: Split, ids: Sequence[str], object_ids: Sequence[str]) -> dict[str, dict[str, object]]:
    """Who is who, for a header: of each part its samples and objects, counted, named where they are few, and a digest
    of their ids."""
    found: dict[str, dict[str, object]] = {}
    for name, members in (("train", split.train), ("validation", split.validation)):
        names = [ids[i] for i in members]
        objects = sorted({object_ids[i] for i in members})
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        found[name] = {"samples": len(names), "objects": len(objects), "digest": digest}
        if len(objects) <= _MOST_IDS:
            found[name]["object_ids"] = objects
    return found
