"""why: the verdict of an incident, and what the same step would have done otherwise."""

from shadowlab.stages.why.why import find_incident, run_why

__all__ = [
    "find_incident",
    "run_why",
]
