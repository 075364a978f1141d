"""A loop's steps under watch: bad values are caught before anything bad is kept."""

from diagnostics.watching.attempts import Attempt, Attempts
from diagnostics.watching.safety import eps_finding, known_kernel_fault
from diagnostics.watching.snapshot import OptimizerState, Randomness
from diagnostics.watching.watch import Watch

__all__ = [
    # Every step of a loop
    "Watch",
    "Attempt",
    "Attempts",
    # One step, kept to be undone
    "OptimizerState",
    "Randomness",
    # Before the first step
    "eps_finding",
    "known_kernel_fault",
]
