"""Examining a data set: every sample once, by any number of processes, resumable, with the same report in the end."""

from shadowlab.examination.check import Selection, check_data
from shadowlab.examination.known import Known, keep_result, known_result
from shadowlab.examination.report import CheckReport, listing

__all__ = ["CheckReport", "Known", "Selection", "check_data", "keep_result", "known_result", "listing"]
