"""overfit: can the model memorise a handful of samples, and does it use every input for it?"""

from shadowlab.stages.overfit.overfit import run_overfit

__all__ = [
    "run_overfit",
]
