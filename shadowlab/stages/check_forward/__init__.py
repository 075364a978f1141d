"""check-forward: proof, before any training, that the model as configured is the model that was meant."""

from shadowlab.stages.check_forward.check_forward import run_check_forward
from shadowlab.stages.check_forward.model_checks import SMALL_LATENT

__all__ = [
    "SMALL_LATENT",
    "run_check_forward",
]
