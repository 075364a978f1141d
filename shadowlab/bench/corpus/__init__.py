"""Training steps with one known fault each, and benign steps that only look faulty; modules go by phase.

scene = FAULTS[0].build()
verdict = explain(scene.step, model=scene.model, optimizer=scene.optimizer, batch=scene.batch)
"""

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.corpus import FAULTS

__all__ = ["FAULTS", "Expected", "Fault", "Scene"]
