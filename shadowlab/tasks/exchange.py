"""Inputs exchanged among the samples of a batch, so that their answers differ the most."""

from torch import Tensor


def farthest(given: Tensor, answer: Tensor) -> int | None:
    """The rotation of the batch that changes the answers the most; None where all that is given is the same.

    given, answer: (B, ...), two samples or more.
    """
    flat, wanted = given.flatten(1).double(), answer.flatten(1).double()
    if not bool((flat != flat[:1]).any()):
        return None
    changes = [float((wanted - wanted.roll(shift, 0)).square().sum()) for shift in range(1, len(wanted))]
    return 1 + max(range(len(changes)), key=changes.__getitem__)
