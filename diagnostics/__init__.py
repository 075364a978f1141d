"""Numerics of any PyTorch training step. Knows modules, tensors and steps; nothing of what is trained."""

from diagnostics.errors import NonFiniteError
from diagnostics.records import RecordWriter, read_records
from diagnostics.statistics import LayerStatistics, ParameterStatistics, TensorStatistics
from diagnostics.tracing import explain
from diagnostics.verdict import CAUSES, EXCEPTIONS, PHASES, Verdict
from diagnostics.watching import Watch

__all__ = [
    "CAUSES",
    "EXCEPTIONS",
    "PHASES",
    "LayerStatistics",
    "NonFiniteError",
    "ParameterStatistics",
    "RecordWriter",
    "TensorStatistics",
    "Verdict",
    "Watch",
    "explain",
    "read_records",
]
