"""Statistics of tensors, layers and parameters that leave their computation on the device."""

from diagnostics.statistics.comparison import Deviation, LayerTrace, deviation
from diagnostics.statistics.layers import LayerStatistics
from diagnostics.statistics.parameters import (
    Histogram,
    ParameterNumbers,
    ParameterStatistics,
    gradient_norms,
    histogram,
    sampled,
    total_norm,
)
from diagnostics.statistics.recorded import recorded_layers, recorded_parameters
from diagnostics.statistics.tensor import TensorStatistics

__all__ = [
    "Deviation",
    "Histogram",
    "LayerStatistics",
    "LayerTrace",
    "ParameterNumbers",
    "ParameterStatistics",
    "TensorStatistics",
    "deviation",
    "gradient_norms",
    "histogram",
    "recorded_layers",
    "recorded_parameters",
    "sampled",
    "total_norm",
]
