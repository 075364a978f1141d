"""check-precision: one step in every precision, compared with float64."""

from shadowlab.stages.check_precision.check_precision import run_check_precision

__all__ = [
    "run_check_precision",
]
