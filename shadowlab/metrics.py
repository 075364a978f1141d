"""Metrics of pictures in [0, 1], one value per image over all pixels; and of latents.

Legend: B batch, C channels, H W pixels. p prediction, g ground truth; results are float32. Soft IoU, RMSE,
scale-invariant RMSE and ZNCC are the benchmark's (arXiv 2412.11972, section 5); PSNR and SSIM are torchmetrics'.
"""

import torch
from torch import Tensor

MAX_PSNR_DB = 100.0


def rmse(p: Tensor, g: Tensor) -> Tensor:
    """Root mean squared error, (B, 1, H, W) -> (B,)."""
    return (p.double() - g.double()).square().flatten(1).mean(dim=1).sqrt().float()


def scale_invariant_rmse(p: Tensor, g: Tensor) -> Tensor:
    """RMSE of a p against g, (B, 1, H, W) -> (B,). a = sum(pg) / sum(pp) is the best scale; 1 where p is all zero."""
    p, g = p.double(), g.double()
    power = p.square().flatten(1).sum(dim=1)
    scale = torch.where(power > 0, (p * g).flatten(1).sum(dim=1) / power.clamp_min(1e-300), torch.ones_like(power))
    return (scale.view(-1, 1, 1, 1) * p - g).square().flatten(1).mean(dim=1).sqrt().float()


def zncc(p: Tensor, g: Tensor) -> Tensor:
    """Zero-mean normalised cross-correlation in [-1, 1], (B, 1, H, W) -> (B,); 0 where either image is constant."""
    p, g = p.double().flatten(1), g.double().flatten(1)
    p, g = p - p.mean(dim=1, keepdim=True), g - g.mean(dim=1, keepdim=True)
    deviation = p.norm(dim=1) * g.norm(dim=1)
    flat = (p.abs().amax(dim=1) < 1e-12) | (g.abs().amax(dim=1) < 1e-12)
    correlation = (p * g).sum(dim=1) / torch.where(flat, torch.ones_like(deviation), deviation)
    return torch.where(flat, torch.zeros_like(correlation), correlation).float()


def soft_iou(p: Tensor, g: Tensor) -> Tensor:
    """sum min(p, g) / sum max(p, g) in [0, 1], (B, 1, H, W) -> (B,); 1 where both are all zero."""
    p, g = p.double().flatten(1), g.double().flatten(1)
    intersection, union = torch.minimum(p, g).sum(dim=1), torch.maximum(p, g).sum(dim=1)
    return torch.where(union > 0, intersection / union.clamp_min(1e-300), torch.ones_like(union)).float()


def psnr(p: Tensor, g: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for data range 1, (B, C, H, W) -> (B,).

    At most 100: equal images would give inf and spoil a mean.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio  # 2 s: for stages that judge pictures alone

    values = [peak_signal_noise_ratio(p[i : i + 1], g[i : i + 1], data_range=1.0) for i in range(len(p))]
    return torch.stack(values).clamp(max=MAX_PSNR_DB)


def ssim(p: Tensor, g: Tensor) -> Tensor:
    """Structural similarity for data range 1, Gaussian window of 11 pixels with sigma 1.5, (B, C, H, W) -> (B,)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(p.float(), g.float(), data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(-1)


def mean_squared_error(p: Tensor, g: Tensor, valid: Tensor) -> Tensor:
    """Over valid pixels and channels, (B, 3, H, W) -> (B,) float64."""
    squares = (p.double() - g.double()).square() * valid
    return squares.flatten(1).sum(dim=1) / (valid.double().flatten(1).sum(dim=1) * p.shape[1])


def masked_ssim(p: Tensor, g: Tensor, valid: Tensor) -> Tensor:
    """Structural similarity, (B, 3, H, W) -> (B,) float32: torchmetrics' map (Gaussian window of 11 pixels, sigma 1.5,
    data range 1, reflected at the border), mean over valid pixels.

    Where a pixel is not valid, the prediction is taken for right: the window of its neighbours sees no error there.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # 2 s: when pictures are judged

    filled = torch.where(valid > 0, p.float(), g.float())
    _, similarity = structural_similarity_index_measure(
        filled, g.float(), data_range=1.0, reduction="none", return_full_image=True
    )
    total = (similarity * valid).flatten(1).sum(dim=1)
    return total / (valid.flatten(1).sum(dim=1) * p.shape[1])


def r_squared(predicted: Tensor, target: Tensor) -> float:
    """Share of the target's variance about its per-channel mean that `predicted` explains; (B, C, h, w) both.

    1 is perfect, 0 is no better than the channel means, below 0 is worse: -inf where the target is constant and missed.
    NaN where either is not finite, and there alone.
    """
    predicted, target = predicted.double(), target.double()
    residual = (predicted - target).square().sum()
    total = (target - target.mean(dim=(0, 2, 3), keepdim=True)).square().sum()
    return 1.0 if residual == 0 else float(1.0 - residual / total)
