"""TensorBoard's Custom Scalars page: the run's charts, one a block with all its layers, its parameters' spread."""

import re
from collections.abc import Sequence
from typing import Any

from diagnostics.board.run_charts import RunChart
from diagnostics.board.tags import BlockNumbers

_LAYER_CHARTS = {
    "gradient norm of each layer's output": "gradient_norm",
    "activation norm of each layer": "activation_norm",
    "headroom of each layer, bits to overflow": "headroom_bits",
}
_PARAMETER_CHARTS = {
    "update ratio": "update_ratio",
    "parameter gradient norm": "parameter_gradient_norm",
}


def layout(
    blocks: BlockNumbers, charts: Sequence[RunChart], *, shows_headroom: bool = True
) -> dict[str, dict[str, list[Any]]]:
    """Category -> chart -> [kind, tags], as `SummaryWriter.add_custom_scalars` takes it.

    Tags of a `Multiline` are regular expressions, those of a `Margin` are value, lower and upper edge.

    Args:
        charts: of the run's own numbers, each with its sub-runs' colours.
        shows_headroom: whether any layer's is drawn.
    """
    categories: dict[str, dict[str, list[Any]]] = {}
    for chart in charts:
        own = categories.setdefault(chart.group, {})
        own[chart.title] = ["Multiline", [f"^{re.escape(chart.tag)}$"]]
    for title, key in _LAYER_CHARTS.items():
        if key == "headroom_bits" and not shows_headroom:
            continue
        categories[title] = {group: ["Multiline", [f"^{re.escape(group)}/{key}/"]] for group in blocks.with_layers}
    for title, key in _PARAMETER_CHARTS.items():
        categories[f"{title} of a block's parameters: median, least to largest"] = {
            group: ["Margin", [f"{group}/block_{key}/{edge}" for edge in ("median", "min", "max")]]
            for group in blocks.with_parameters
        }
    return categories
