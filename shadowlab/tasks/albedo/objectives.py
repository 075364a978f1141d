"""The objective that the options name."""

from collections.abc import Callable

from torch import Tensor

from shadowlab.models import (
    EpsilonPrediction,
    MultiResolutionNoise,
    Objective,
    OneStep,
    RectifiedFlow,
    VPrediction,
)
from shadowlab.tasks.albedo.options import AlbedoModelOptions

_KINDS: dict[str, Callable[[], Objective]] = {"v": VPrediction, "epsilon": EpsilonPrediction, "flow": RectifiedFlow}


def objective_of(options: AlbedoModelOptions, decode: Callable[[Tensor], Tensor]) -> Objective:
    """decode: latents (B, 4, h, w) -> pictures (B, 3, H, W) in about [-1, 1], for a loss of pixels."""
    objective = _KINDS[options.objective]()
    if options.noise_strength:
        objective = MultiResolutionNoise(objective, options.noise_strength)
    return OneStep(objective, decode) if options.one_step else objective
