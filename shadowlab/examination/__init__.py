"""Examining a data set: every sample once, by any number of processes, resumable, with the same report in the end."""

from shadowlab.examination.check import Selection, check_data
from shadowlab.examination.report import CheckReport, listing

__all__ = ["CheckReport", "Selection", "check_data", "listing"]
