"""A loop's steps under watch: bad values are caught before anything bad is kept."""

from diagnostics.watching.safety import eps_finding, known_kernel_fault
from diagnostics.watching.snapshot import OptimizerState
from diagnostics.watching.watch import Watch

__all__ = [
    # Every step of a loop
    "Watch",
    # One step, kept to be undone
    "OptimizerState",
    # Before the first step
    "eps_finding",
    "known_kernel_fault",
]
