"""Faults with public sources and benign steps, by phase."""

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.corpus import FAULTS

__all__ = ["FAULTS", "Expected", "Fault", "Scene"]
