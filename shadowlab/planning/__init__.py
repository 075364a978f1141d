"""What a run needs in memory, before anything is allocated."""

from shadowlab.planning.live_bytes import VAE
from shadowlab.planning.measure import measured_peaks
from shadowlab.planning.plan import plan_memory
from shadowlab.planning.rehearsal import ENCODE, VALIDATION
from shadowlab.planning.report import format_measured
from shadowlab.planning.run import run_plan

__all__ = [
    "ENCODE",
    "VAE",
    "VALIDATION",
    "format_measured",
    "measured_peaks",
    "plan_memory",
    "run_plan",
]
