"""Judging a model: on a fixed grid of (sample, t, noise) while it trains, and on whole data sets afterwards."""

from shadowlab.evaluation.comparison import Compared, compare_models
from shadowlab.evaluation.fixed_grid import FixedGrid, GridResult
from shadowlab.evaluation.judging import Evaluated, evaluate
from shadowlab.evaluation.subject import Question, parse_steps
from shadowlab.evaluation.tables import show_comparison, show_evaluation

__all__ = [
    # While it trains
    "FixedGrid",
    "GridResult",
    # Whole data sets
    "Evaluated",
    "Question",
    "evaluate",
    "parse_steps",
    "show_evaluation",
    # Two evaluations
    "Compared",
    "compare_models",
    "show_comparison",
]
