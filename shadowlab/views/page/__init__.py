"""One run, or one evaluation, as an HTML page that needs no network: what happened, why, and what to do about it."""

from shadowlab.views.page.evaluation import JudgedSample, SampleCell, write_evaluation_page
from shadowlab.views.page.page import write_report

__all__ = [
    # a run
    "write_report",
    # an evaluation
    "JudgedSample",
    "SampleCell",
    "write_evaluation_page",
]
