"""What an insertion is judged by, inside the mask and over all apart. Pictures are composited first: outside the mask
there is nothing to judge.

Legend: B batch, H W pixels. p prediction, g ground truth, mask (B, 1, H, W) in {0, 1}.
"""

import torch
from torch import Tensor

from shadowlab.charts import Metric
from shadowlab.metrics import MAX_PSNR_DB, masked_ssim, mean_squared_error
from shadowlab.tasks.insertion.layout import composited

PSNR_INSIDE = Metric("psnr_inside", "PSNR inside", form=".2f")
SSIM_INSIDE = Metric("ssim_inside", "SSIM inside")
RMSE_INSIDE = Metric("rmse_inside", "RMSE inside", higher_is_better=False, form=".4f")
PSNR = Metric("psnr", "PSNR", form=".2f")
SSIM = Metric("ssim", "SSIM")
RMSE = Metric("rmse", "RMSE", higher_is_better=False, form=".4f")
LPIPS = Metric("lpips", "LPIPS", higher_is_better=False)
METRICS = (PSNR_INSIDE, SSIM_INSIDE, RMSE_INSIDE, PSNR, SSIM, RMSE)
"""Those that need no weights."""


def per_image_metrics(p: Tensor, g: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Each of `METRICS`, (B,) float32. p, g: (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: the shapes differ, or a mask is empty, so that nothing can be said of it.
    """
    if p.shape != g.shape or mask.shape != g[:, :1].shape:
        raise ValueError(f"prediction {tuple(p.shape)}, truth {tuple(g.shape)} and mask {tuple(mask.shape)} do not fit")
    if not bool(mask.flatten(1).any(dim=1).all()):
        raise ValueError("a mask is empty: nothing of the picture can be judged")
    made, everywhere = composited(p.float(), g.float(), mask), torch.ones_like(mask)
    found = {}
    for suffix, where in (("_inside", mask), ("", everywhere)):
        error = mean_squared_error(made, g, where)
        found[f"psnr{suffix}"] = (-10.0 * error.clamp_min(1e-300).log10()).clamp(max=MAX_PSNR_DB).float()
        found[f"ssim{suffix}"] = masked_ssim(made, g, where)
        found[f"rmse{suffix}"] = error.sqrt().float()
    return {metric.name: found[metric.name] for metric in METRICS}
