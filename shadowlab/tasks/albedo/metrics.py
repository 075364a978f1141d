"""What an albedo is judged by, each metric in a colour space of its own, over the valid pixels of each image.

PSNR, RMSE and SSIM compare what people see, so in sRGB, as Marigold's published figures do; the scale-invariant RMSE
and WHDR compare reflectances, which are proportional to light, so in linear.

Legend: B batch, H W pixels. p prediction, g ground truth, valid (B, 1, H, W) in {0, 1}.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shadowlab.charts import Metric
from shadowlab.metrics import MAX_PSNR_DB, masked_ssim, mean_squared_error
from shadowlab.tasks.colour import ColourSpace, converted

PSNR = Metric("psnr", "PSNR", form=".2f")
SSIM = Metric("ssim", "SSIM")
RMSE = Metric("rmse", "RMSE", higher_is_better=False, form=".4f")
SI_RMSE = Metric("si_rmse", "si-RMSE", higher_is_better=False, form=".4f")
WHDR = Metric("whdr", "WHDR", higher_is_better=False)
LPIPS = Metric("lpips", "LPIPS", higher_is_better=False)
METRICS = (PSNR, SSIM, RMSE, SI_RMSE)
"""Those of every data set."""
SPACES: Mapping[str, ColourSpace] = {
    "psnr": "srgb",
    "ssim": "srgb",
    "rmse": "srgb",
    "si_rmse": "linear",
    "whdr": "linear",
    "lpips": "srgb",
}
"""Metric -> the colour space that prediction and truth are brought to for it."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Prediction and truth in both spaces, each converted once."""

    prediction: Mapping[ColourSpace, Tensor]
    """(B, 3, H, W) float32 in [0, 1]."""
    truth: Mapping[ColourSpace, Tensor]
    valid: Tensor
    """(B, 1, H, W) float32 in {0, 1}."""

    @classmethod
    def of(cls, prediction: Tensor, truth: Tensor, valid: Tensor, space: ColourSpace) -> "Pair":
        """prediction, truth: (B, 3, H, W) in [0, 1], both in `space`. valid: (B, 1, H, W) in {0, 1}.

        Raises:
            ValueError: the shapes differ, or an image has no valid pixel, so that nothing can be said of it.
        """
        if prediction.shape != truth.shape or valid.shape != truth[:, :1].shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)}, truth {tuple(truth.shape)} and valid mask {tuple(valid.shape)} "
                "do not fit together"
            )
        if not bool(valid.flatten(1).any(dim=1).all()):
            raise ValueError("an image has no valid pixel: nothing of it can be judged")
        spaces: tuple[ColourSpace, ...] = ("srgb", "linear")
        both = [{one: converted(picture.float(), space, one) for one in spaces} for picture in (prediction, truth)]
        return cls(both[0], both[1], valid.float())


def per_image_metrics(p: Tensor, g: Tensor, valid: Tensor, space: ColourSpace) -> dict[str, Tensor]:
    """Each of `METRICS`, (B,) float32; arguments and errors as `Pair.of`."""
    return judged(Pair.of(p, g, valid, space))


def judged(pair: Pair) -> dict[str, Tensor]:
    """Each of `METRICS`, (B,) float32."""
    error = mean_squared_error(pair.prediction["srgb"], pair.truth["srgb"], pair.valid)
    return {
        "psnr": (-10.0 * error.clamp_min(1e-300).log10()).clamp(max=MAX_PSNR_DB).float(),
        "ssim": masked_ssim(pair.prediction["srgb"], pair.truth["srgb"], pair.valid),
        "rmse": error.sqrt().float(),
        "si_rmse": scale_invariant_rmse(pair.prediction["linear"], pair.truth["linear"], pair.valid),
    }


def scale_invariant_rmse(p: Tensor, g: Tensor, valid: Tensor) -> Tensor:
    """RMSE of a p against g, (B, 3, H, W) -> (B,) float32, after Grosse et al., ICCV 2009.

    a = sum(pg) / sum(pp) over valid pixels is the best scale of all channels together: one a channel would forgive a
    wrong colour. 1 where p is all zero.
    """
    p, g = p.double() * valid, g.double() * valid
    power = p.square().flatten(1).sum(dim=1)
    scale = torch.where(power > 0, (p * g).flatten(1).sum(dim=1) / power.clamp_min(1e-300), torch.ones_like(power))
    return mean_squared_error(scale.view(-1, 1, 1, 1) * p, g, valid).sqrt().float()


def wrong_space_loss_db(g: Tensor, valid: Tensor, space: ColourSpace) -> Tensor:
    """The PSNR in dB, (B,) float32, of a perfect prediction that is declared to be in the other colour space than it
    is: what a mistake of the space alone costs. Arguments as `Pair.of`."""
    other: ColourSpace = "linear" if space == "srgb" else "srgb"
    pair = Pair.of(converted(g.float(), space, other), g, valid, space)
    return judged(pair)["psnr"]
