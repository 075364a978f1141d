"""A loop's steps under watch: bad values are caught before anything bad is kept."""

from diagnostics.watching.safety import eps_finding, known_kernel_fault
from diagnostics.watching.snapshot import OptimizerState
from diagnostics.watching.watch import Watch

__all__ = [
    "OptimizerState",
    "Watch",
    "eps_finding",
    "known_kernel_fault",
]
