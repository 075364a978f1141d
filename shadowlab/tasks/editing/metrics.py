"""What an edit is judged by. All pictures are sRGB in [0, 1]; borders that made them square do not count.

Legend: B batch, H W pixels. p prediction, g truth.
"""

import torch
from torch import Tensor

from shadowlab.charts import Metric
from shadowlab.metrics import MAX_PSNR_DB
from shadowlab.tasks.editing.colour_difference import angular_error, mean_delta_e
from shadowlab.tasks.editing.edits import EditName
from shadowlab.tasks.editing.painting import edge_agreement
from shadowlab.tasks.editing.samples import EditingBatch
from shadowlab.tasks.editing.white_balance import balanced

RMSE = Metric("rmse", "RMSE", higher_is_better=False, form=".4f")
MSE = Metric("mse", "MSE", higher_is_better=False, form=".5f")
PSNR = Metric("psnr", "PSNR", form=".2f")
ANGLE = Metric("angular_error", "angular error in degrees", higher_is_better=False, form=".2f")
DELTA_E = Metric("delta_e", "Delta E 2000", higher_is_better=False, form=".2f")
PAINTED_RMSE = Metric("painted_rmse", "RMSE as painted", higher_is_better=False, form=".4f")
PAINTED_ANGLE = Metric("painted_angular_error", "angular error as painted", higher_is_better=False, form=".2f")
INSIDE_RMSE = Metric("inside_rmse", "RMSE inside the mask", higher_is_better=False, form=".4f")
INSIDE_PSNR = Metric("inside_psnr", "PSNR inside the mask", form=".2f")
OUTSIDE_RMSE = Metric("outside_rmse", "RMSE outside the mask", higher_is_better=False, form=".4f")
PAINTED_OUTSIDE_RMSE = Metric("painted_outside_rmse", "RMSE outside, as painted", higher_is_better=False, form=".4f")
EDGES = Metric("edge_agreement", "edge agreement")

METRICS: dict[EditName, tuple[Metric, ...]] = {
    "white-balance": (RMSE, MSE, ANGLE, DELTA_E, PAINTED_RMSE, PAINTED_ANGLE),
    "object-removal": (INSIDE_RMSE, INSIDE_PSNR, OUTSIDE_RMSE, PAINTED_OUTSIDE_RMSE),
    "paint-to-image": (RMSE, PSNR, EDGES),
}
"""Of each edit, in the order of tables."""
RANKING: dict[EditName, Metric] = {
    "white-balance": DELTA_E,
    "object-removal": INSIDE_PSNR,
    "paint-to-image": PSNR,
}
BOUND: dict[EditName, Metric] = {"white-balance": RMSE, "object-removal": INSIDE_RMSE, "paint-to-image": RMSE}
"""What `task_options.max_rmse` is asked of."""


def judged(edit: EditName, p: Tensor, batch: EditingBatch, *, keep_input: bool) -> dict[str, Tensor]:
    """Each of `METRICS` of the edit, (B,) float32.

    Args:
        p: (B, 3, H, W) in [0, 1], as painted.
        batch: on the same device.
        keep_input: whether the result has of the input what the edit does not concern.
    """
    result = finished(edit, p, batch) if keep_input else p
    g, valid = batch.target, batch.valid
    match edit:
        case "white-balance":
            error = mean_squared_error(result, g, valid)
            return {
                "rmse": error.sqrt().float(),
                "mse": error.float(),
                "angular_error": angular_error(result, g, valid),
                "delta_e": mean_delta_e(result, g, valid),
                "painted_rmse": mean_squared_error(p, g, valid).sqrt().float(),
                "painted_angular_error": angular_error(p, g, valid),
            }
        case "object-removal":
            inside, outside = batch.mask * valid, (1 - batch.mask) * valid
            error = mean_squared_error(result, g, inside)
            return {
                "inside_rmse": error.sqrt().float(),
                "inside_psnr": decibels(error),
                "outside_rmse": mean_squared_error(result, g, outside).sqrt().float(),
                "painted_outside_rmse": mean_squared_error(p, g, outside).sqrt().float(),
            }
        case "paint-to-image":
            error = mean_squared_error(result, g, valid)
            return {
                "rmse": error.sqrt().float(),
                "psnr": decibels(error),
                "edge_agreement": edge_agreement(result, g, valid),
            }


def finished(edit: EditName, painted: Tensor, batch: EditingBatch) -> Tensor:
    """The result of what a model painted, (B, 3, H, W) in [0, 1], that keeps of the input what `Edit.keeps` says."""
    match edit:
        case "white-balance":
            return balanced(batch.input, painted, batch.valid)
        case "object-removal":
            return torch.where(batch.mask > 0, painted, batch.input)
        case "paint-to-image":
            return painted


def mean_squared_error(p: Tensor, g: Tensor, counts: Tensor) -> Tensor:
    """Over pixels that count and channels, (B, 3, H, W) -> (B,) float64; 0 where no pixel counts."""
    squares = (p.double() - g.double()).square() * counts
    return squares.flatten(1).sum(dim=1) / (counts.double().flatten(1).sum(dim=1).clamp_min(1) * p.shape[1])


def decibels(error: Tensor) -> Tensor:
    """PSNR for data range 1 of mean squared errors (B,); at most 100."""
    return (-10.0 * error.clamp_min(1e-300).log10()).clamp(max=MAX_PSNR_DB).float()
