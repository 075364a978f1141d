"""Faults that are put into copies of this project's code and of a data set, one at a time, to see which stage stops
them."""

from shadowlab.bench.mutants.mutant import CodeMutant, DataMutant, Edit

__all__ = ["CodeMutant", "DataMutant", "Edit"]
