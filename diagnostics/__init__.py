"""Numerics of any PyTorch training step. Knows modules, tensors and steps; nothing of what is trained."""

from diagnostics.explain import explain
from diagnostics.layers import LayerStatistics
from diagnostics.nonfinite import NonFiniteError
from diagnostics.parameters import ParameterStatistics
from diagnostics.records import RecordWriter, read_records
from diagnostics.statistics import TensorStatistics
from diagnostics.verdict import CAUSES, EXCEPTIONS, PHASES, Verdict
from diagnostics.watch import Watch

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
