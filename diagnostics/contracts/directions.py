"""Which way a metric is better, by its name."""

import re

_HIGHER = r"(acc|accuracy|iou|miou|psnr|ssim|f1|auc|auroc|map|precision|recall|dice|zncc|bleu|rouge|r2|reward|return)"
_LOWER = r"(loss|error|err|rmse|mse|mae|nll|fid|lpips|perplexity|ppl|wer|cer|kl|absrel)"


def direction_of(name: str) -> bool | None:
    """Whether a higher value is better, by the metric's name; None where it does not say it."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    lower, higher = (any(re.fullmatch(one, word) for word in words) for one in (_LOWER, _HIGHER))
    return None if lower == higher else higher
