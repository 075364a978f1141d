"""What a shadow map is judged by."""

from torch import Tensor

from shadowlab.metrics import psnr, rmse, scale_invariant_rmse, soft_iou, ssim, zncc


def per_image_metrics(p: Tensor, g: Tensor) -> dict[str, Tensor]:
    """The benchmark's metrics (arXiv 2412.11972, section 5), PSNR and SSIM; (B, 1, H, W) in [0, 1] twice -> (B,) each.

    Raises:
        ValueError: the shapes differ.
    """
    if p.shape != g.shape:
        raise ValueError(f"prediction {tuple(p.shape)} and truth {tuple(g.shape)} differ in shape")
    p, g = p.float(), g.float()
    return {
        "rmse": rmse(p, g),
        "si_rmse": scale_invariant_rmse(p, g),
        "zncc": zncc(p, g),
        "soft_iou": soft_iou(p, g),
        "psnr": psnr(p, g),
        "ssim": ssim(p, g),
    }
