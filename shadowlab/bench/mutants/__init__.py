"""Faults that are put into copies of this project's code and of a data set, one at a time, to see which stage stops
them."""

from shadowlab.bench.mutants.corpus import CODE_MUTANTS, FAMILIES
from shadowlab.bench.mutants.data import DATA_MUTANTS, FaultySet
from shadowlab.bench.mutants.mutant import STAGES, CodeMutant, DataMutant, Edit, Stage
from shadowlab.bench.mutants.report import MutantReport, format_table, line
from shadowlab.bench.mutants.run import checked_stages, run_mutants

__all__ = [
    "CODE_MUTANTS",
    "DATA_MUTANTS",
    "FAMILIES",
    "STAGES",
    "CodeMutant",
    "DataMutant",
    "Edit",
    "FaultySet",
    "MutantReport",
    "Stage",
    "checked_stages",
    "format_table",
    "line",
    "run_mutants",
]
