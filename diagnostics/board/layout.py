"""TensorBoard's Custom Scalars page: the run's charts, one a block with all its layers, its parameters' spread."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diagnostics.board.tags import BlockNumbers

RUN_CHARTS: Mapping[str, Sequence[str]] = {
    "loss": ["^train/loss$"],
    "loss by t": ["^train/loss_by_t/"],
    "gradient norm, before and after clipping": ["^train/grad_norm(_clipped)?$"],
    "held-out loss by t": ["^validation/loss_t"],
    "answer to each condition": ["^validation/response_"],
}
"""Charts for records of the kinds `train` and `validation`: title -> regular expressions of the tags of its curves."""

_LAYER_CHARTS = {
    "gradient norm of each layer's output": "gradient_norm",
    "activation norm of each layer": "activation_norm",
    "headroom of each layer, bits to overflow": "headroom_bits",
}
_PARAMETER_CHARTS = {
    "update ratio": "update_ratio",
    "parameter gradient norm": "parameter_gradient_norm",
}


def layout(blocks: BlockNumbers, run_charts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[Any]]]:
    """Category -> chart -> [kind, tags], as `SummaryWriter.add_custom_scalars` takes it.

    Tags of a `Multiline` are regular expressions, those of a `Margin` are value, lower and upper edge.

    Args:
        run_charts: title -> regular expressions of the tags of numbers of the run.
    """
    categories: dict[str, dict[str, list[Any]]] = {}
    if run_charts:
        categories["run"] = {title: ["Multiline", list(patterns)] for title, patterns in run_charts.items()}
    for title, key in _LAYER_CHARTS.items():
        categories[title] = {group: ["Multiline", [f"^{re.escape(group)}/{key}/"]] for group in blocks.with_layers}
    for title, key in _PARAMETER_CHARTS.items():
        categories[f"{title} of a block's parameters: median, least to largest"] = {
            group: ["Margin", [f"{group}/block_{key}/{edge}" for edge in ("median", "min", "max")]]
            for group in blocks.with_parameters
        }
    return categories
