"""Pictures that are edited: a white balance corrected, an object removed with its shadow, a painting made a picture."""

from shadowlab.tasks.editing.colour_difference import angular_error, ciede2000, lab_of
from shadowlab.tasks.editing.edits import EDITS, EditName
from shadowlab.tasks.editing.generate import EditingGenerator, check_options
from shadowlab.tasks.editing.painting import painted
from shadowlab.tasks.editing.samples import EditingBatch, EditingSample, collate
from shadowlab.tasks.editing.white_balance import balanced, cast, fitted_gains

__all__ = [
    "EDITS",
    "EditName",
    "EditingBatch",
    "EditingGenerator",
    "EditingSample",
    "angular_error",
    "balanced",
    "cast",
    "check_options",
    "ciede2000",
    "collate",
    "fitted_gains",
    "lab_of",
    "painted",
]
