"""Numerics of any PyTorch training step. Knows modules, tensors and steps; nothing of what is trained."""

from diagnostics.layers import LayerStatistics
from diagnostics.nonfinite import NonFiniteError, NonFiniteFinding, locate_first_nonfinite
from diagnostics.parameters import ParameterStatistics
from diagnostics.records import RecordWriter, read_records
from diagnostics.statistics import TensorStatistics

__all__ = [
    "LayerStatistics",
    "NonFiniteError",
    "NonFiniteFinding",
    "ParameterStatistics",
    "RecordWriter",
    "TensorStatistics",
    "locate_first_nonfinite",
    "read_records",
]
