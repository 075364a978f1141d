"""How well predictions explain what they predict."""

from torch import Tensor


def r_squared(predicted: Tensor, target: Tensor) -> float:
    """Share of the target's variance about its per-channel mean that `predicted` explains; (B, C, h, w) both.

    1 is perfect, 0 is no better than the channel means, below 0 is worse: -inf where the target is constant and missed.
    NaN where either is not finite, and there alone.
    """
    predicted, target = predicted.double(), target.double()
    residual = (predicted - target).square().sum()
    total = (target - target.mean(dim=(0, 2, 3), keepdim=True)).square().sum()
    return 1.0 if residual == 0 else float(1.0 - residual / total)
