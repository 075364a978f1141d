"""TensorBoard's Custom Scalars page: one chart a block with all its layers, and how its parameters spread."""

import re
from typing import Any

from diagnostics.board.tags import PARAMETER_KEYS, BlockNumbers

_RUN_CHARTS = {
    "loss": r"^(train|overfit)/loss$",
    "loss by t": r"^(train|overfit)/loss_by_t/",
    "gradient norm, before and after clipping": r"^(train|overfit)/grad_norm(_clipped)?$",
    "held-out loss by t": r"^(validation|fixed_grid)/loss_t",
    "answer to each condition": r"^(validation|fixed_grid)/response_",
}
_LAYER_CHARTS = {
    "gradient norm of each layer's output": "gradient_norm",
    "activation norm of each layer": "activation_norm",
    "headroom of each layer, bits to overflow": "headroom_bits",
}
_PARAMETER_CHARTS = {
    "update ratio": "update_ratio",
    "parameter gradient norm": "parameter_gradient_norm",
}


def layout(blocks: BlockNumbers) -> dict[str, dict[str, list[Any]]]:
    """Category -> chart -> [kind, tags], as `SummaryWriter.add_custom_scalars` takes it.

    Tags of a `Multiline` are regular expressions, those of a `Margin` are value, lower and
    upper edge.
    """
    assert set(_PARAMETER_CHARTS.values()) == set(PARAMETER_KEYS.values())
    categories: dict[str, dict[str, list[Any]]] = {
        "run": {title: ["Multiline", [pattern]] for title, pattern in _RUN_CHARTS.items()}
    }
    for title, key in _LAYER_CHARTS.items():
        categories[title] = {group: ["Multiline", [f"^{re.escape(group)}/{key}/"]] for group in blocks.with_layers}
    for title, key in _PARAMETER_CHARTS.items():
        categories[f"{title} of a block's parameters: median, least to largest"] = {
            group: ["Margin", [f"{group}/block_{key}/{edge}" for edge in ("median", "min", "max")]]
            for group in blocks.with_parameters
        }
    return categories
