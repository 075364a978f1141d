"""Training loops that are finite and wrong, healthy ones that look odd, and the score of what names them.

report = run_silent(["zero_grad_forgotten"])
print(format_report(report))
"""

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.corpus import CORPUS
from shadowlab.bench.silent.report import SilentReport, format_report
from shadowlab.bench.silent.runs import run_silent

__all__ = [
    # The corpus
    "CORPUS",
    "Case",
    "Expected",
    "Watching",
    # The score
    "SilentReport",
    "format_report",
    "run_silent",
]
