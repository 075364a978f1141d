"""The objective that the options name."""

from shadowlab.models import Dream, EpsilonPrediction, Objective, VPrediction
from shadowlab.tasks.insertion.options import InsertionModelOptions


def objective_of(options: InsertionModelOptions) -> Objective:
    plain = EpsilonPrediction() if options.objective == "epsilon" else VPrediction()
    return plain if options.dream is None else Dream(plain, options.dream)
