"""Which samples are memorised: a few objects with several samples each, so that neither the object nor what differs
among its samples can be left out of account."""

from collections import defaultdict
from typing import Any

from shadowlab.data import SampleSet
from shadowlab.seeding import derive_seed


def samples_to_memorise(dataset: SampleSet[Any], count: int, seed: int) -> list[int]:
    """`count` numbers of samples, ascending, of about sqrt(count) objects with about as many samples each.

    Within an object samples are ranked by a hash of their numbers (a light), so that objects which were drawn under
    the same values bring the same ones where they can: then no value tells the object, and the model needs both.
    Depends on the seed and on the set of samples. count: at most len(dataset).
    """
    of_object: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(dataset.object_ids):
        of_object[name].append(number)
    names = sorted(of_object, key=lambda name: (derive_seed(seed, "overfit-objects", name), name))
    several = [name for name in names if len(of_object[name]) > 1]
    names = several + [name for name in names if len(of_object[name]) == 1]
    each = -(-count // max(1, round(count**0.5)))
    chosen: list[int] = []
    left: list[int] = []
    for name in names:
        if len(chosen) >= count:
            break
        ranked = sorted(of_object[name], key=lambda number: _rank(dataset, number, seed))
        taken = min(each, count - len(chosen))
        chosen += ranked[:taken]
        left += ranked[taken:]
    return sorted([*chosen, *left][:count])


def _rank(dataset: SampleSet[Any], number: int, seed: int) -> tuple[int, int]:
    values = dataset.entry(number).values
    told = [dataset.ids[number]] if values is None else [f"{value:g}" for value in values]
    return derive_seed(seed, "overfit-samples", *told), number
