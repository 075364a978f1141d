"""A training script that is not ours, run under watch as it is, from one optimizer step to the next."""

from shadowlab.foreign.run import Options, Outcome, run_again, watch_script
from shadowlab.foreign.script import Script, without_our_frames

__all__ = [
    # What is run, and how
    "Script",
    "Options",
    # Running it
    "watch_script",
    "run_again",
    "Outcome",
    # What it raised, as Python alone would have shown it
    "without_our_frames",
]
