"""Several predictions of one picture to one, with a map of where they disagree (Ke et al., Marigold, CVPR 2024).

Depth is aligned in scale and shift before it is averaged; an albedo has both, so nothing is aligned here.

Legend: N predictions, C channels, H W pixels.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from shadowlab.errors import UserError

Reduction = Literal["mean", "median"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


@dataclass(frozen=True, eq=False)
class Ensembled:
    """What N predictions have in common, and where they differ."""

    prediction: Tensor
    """(C, H, W) in [0, 1]."""
    uncertainty: Tensor | None
    """(C, H, W), at least 0: the standard deviation over the predictions (of the mean), or the median distance from
    their median; None of a single one, from which it cannot be known."""


def ensembled(predictions: Tensor, reduction: Reduction = "median") -> Ensembled:
    """As `MarigoldIntrinsicsPipeline` of diffusers does it.

    Args:
        predictions: (N, C, H, W) in [0, 1], of one picture, in one colour space.
        reduction: `mean` has the least squared error; `median` lets a single prediction that fails go unheard.

    Raises:
        UserError: there is no such reduction, or no prediction.
    """
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction {reduction!r}: give mean or median")
    if predictions.ndim != 4 or not len(predictions):
        raise UserError(f"predictions {tuple(predictions.shape)}: expected (N, C, H, W), N at least 1")
    if len(predictions) == 1:
        return Ensembled(predictions[0], None)
    if reduction == "mean":
        return Ensembled(predictions.mean(dim=0), predictions.std(dim=0))
    middle = predictions.median(dim=0).values
    return Ensembled(middle, (predictions - middle).abs().median(dim=0).values)
