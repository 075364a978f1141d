"""Statistics as records keep them: plain dictionaries of numbers."""

from collections.abc import Mapping

from diagnostics.statistics.parameters import ParameterNumbers
from diagnostics.statistics.tensor import TensorStatistics

_SCALED = ("norm", "mean", "std", "max_abs")  # headroom stays that of the scaled values: they overflow


def recorded_layers(
    layers: Mapping[str, Mapping[str, TensorStatistics]], scale: float = 1.0
) -> dict[str, dict[str, dict[str, float]]]:
    """`layers` of a record of a training step.

    Args:
        layers: as `LayerStatistics.collect` gives them, or `Watch.layers`.
        scale: of the gradient scaler in this step. Gradients are divided by it; their headroom is not.
    """
    return {
        name: {part: _unscaled(s.to_dict(), scale if part == "gradient" else 1.0) for part, s in parts.items()}
        for name, parts in layers.items()
    }


def recorded_parameters(parameters: Mapping[str, ParameterNumbers]) -> dict[str, dict[str, float | None]]:
    """`parameters` of a record of a training step, from what `ParameterStatistics.collect` gives."""
    return {
        name: {"gradient_norm": one.gradient_norm, "update_ratio": one.update_ratio} for name, one in parameters.items()
    }


def _unscaled(statistics: dict[str, float], scale: float) -> dict[str, float]:
    return {key: value / scale if key in _SCALED else value for key, value in statistics.items()}
