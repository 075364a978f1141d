"""Training and validation sets that share no object.

Consecutive benchmark images show one object under several lights: a split by sample would let the
validation set repeat the training set.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed


@dataclass(frozen=True)
class Split:
    """Indices into the data set, each side ascending; together they hold every index once."""

    train: list[int]
    validation: list[int]


def split_by_object(
    object_ids: Sequence[str], validation_fraction: float, seed: int, held_out: Collection[str] | None = None
) -> Split:
    """Split so that all samples of an object are on one side.

    Objects are ranked by a hash of (seed, object id) and the first `validation_fraction` of them, rounded, are
    for validation; each side gets at least one. Depends on the set of objects, not on the order of samples.

    Args:
        object_ids: object id of each sample, in data set order.
        validation_fraction: share of the objects, in (0, 1).
        seed: any integer.
        held_out: the objects that are for validation, where a data set says so itself; then nothing is drawn.

    Raises:
        UserError: the fraction is outside (0, 1), or there are fewer than two objects.
    """
    if not 0.0 < validation_fraction < 1.0:  # NaN fails this too
        raise UserError(f"validation_fraction = {validation_fraction} is outside (0, 1); 0.1 is usual")
    objects = sorted(set(object_ids), key=lambda name: (derive_seed(seed, "split", name), name))
    if len(objects) < 2:
        raise UserError(
            f"cannot split {len(object_ids)} samples of {len(objects)} object(s) into training and validation; "
            "add samples of a second object, or name `object` in metadata.json"
        )
    if held_out is None:
        num_validation = min(max(round(validation_fraction * len(objects)), 1), len(objects) - 1)
        held_out = set(objects[:num_validation])
    return Split(
        train=[i for i, name in enumerate(object_ids) if name not in held_out],
        validation=[i for i, name in enumerate(object_ids) if name in held_out],
    )
