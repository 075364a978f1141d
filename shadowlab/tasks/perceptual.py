"""LPIPS (Zhang et al., CVPR 2018), where its weights lie on this machine: nothing is downloaded to judge a picture."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHTS = "alexnet-owt-7be5be79.pth"
"""Of the backbone; torchvision keeps it where `torch.hub` keeps files."""
_LEAST_SIDE = 32  # the backbone halves a picture five times


def missing_for_lpips() -> str | None:
    """Why LPIPS cannot be computed here, and the fix; None where it can."""
    for package in ("torchvision", "torchmetrics"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    file = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not file.is_file():
        return f"{file} is not on this machine (AlexNet's weights, from https://download.pytorch.org/models/{WEIGHTS})"
    return None


def lpips(p: Tensor, g: Tensor, valid: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1], sRGB, twice -> (B,) float32; 0 is equal. valid: (B, 1, H, W): where it is 0 the
    prediction is taken for right. Only where `missing_for_lpips` says nothing."""
    network = _network()
    filled = torch.where(valid > 0, p.float(), g.float())
    pairs = [one.clamp(0, 1).cpu().split(1) for one in (_large_enough(filled), _large_enough(g.float()))]
    with torch.no_grad():
        found = [network(one, other) for one, other in zip(*pairs, strict=True)]
    network.reset()
    return torch.stack(found).float()


def _large_enough(pictures: Tensor) -> Tensor:
    """(B, 3, H, W), enlarged where the backbone would leave nothing of them."""
    factor = -(-_LEAST_SIDE // min(pictures.shape[-2:]))
    return pictures if factor <= 1 else torch.nn.functional.interpolate(pictures, scale_factor=float(factor))


@cache
def _network() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
