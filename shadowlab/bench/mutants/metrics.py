"""Metrics: floors, ceilings, directions, per image and not per batch."""

from shadowlab.bench.mutants.mutant import Edit, mutant

_METRICS = "shadowlab/metrics.py"
_TASK = "shadowlab/tasks/shadow/task.py"
_CALLERS = ("shadowlab/tasks/shadow/metrics.py per_image_metrics", f"{_TASK} ShadowTask.judge")
_MET = (
    "            numbers[metric.name] >= bound if metric.higher_is_better else numbers[metric.name] <= bound\n"
    "            for metric"
)

METRICS = (
    mutant(
        "soft-iou-with-a-floor",
        f"{_METRICS} soft_iou",
        "intersection / union.clamp_min(1e-300)",
        "(intersection + 200.0) / (union + 200.0)",
        also=_CALLERS,
        says=("soft_iou", "soft IoU"),
    ),
    mutant(
        "soft-iou-of-the-batch",
        f"{_METRICS} soft_iou",
        "torch.minimum(p, g).sum(dim=1), torch.maximum(p, g).sum(dim=1)",
        "torch.minimum(p, g).sum().expand(len(p)), torch.maximum(p, g).sum().expand(len(p))",
        also=_CALLERS,
        says=("soft_iou", "soft IoU"),
    ),
    mutant(
        "soft-iou-of-sums",
        f"{_METRICS} soft_iou",
        "torch.minimum(p, g).sum(dim=1), torch.maximum(p, g).sum(dim=1)",
        "torch.minimum(p.sum(dim=1), g.sum(dim=1)), torch.maximum(p.sum(dim=1), g.sum(dim=1))",
        also=_CALLERS,
        says=("soft_iou", "soft IoU"),
    ),
    mutant(
        "rmse-of-the-batch",
        f"{_METRICS} rmse",
        "(p.double() - g.double()).square().flatten(1).mean(dim=1)",
        "(p.double() - g.double()).square().mean().expand(len(p))",
        also=_CALLERS,
        says=("rmse",),
    ),
    mutant(
        "rmse-of-the-means",
        f"{_METRICS} rmse",
        "(p.double() - g.double()).square().flatten(1).mean(dim=1)",
        "(p.double() - g.double()).flatten(1).mean(dim=1).square()",
        also=_CALLERS,
        says=("rmse",),
    ),
    mutant(
        "scale-invariant-rmse-unscaled",
        f"{_METRICS} scale_invariant_rmse",
        "(scale.view(-1, 1, 1, 1) * p - g)",
        "(scale.view(-1, 1, 1, 1).clamp(1.0, 1.0) * p - g)",
        also=_CALLERS,
        says=("si_rmse", "scale-invariant"),
    ),
    mutant(
        "zncc-with-its-mean",
        f"{_METRICS} zncc",
        "p, g = p - p.mean(dim=1, keepdim=True), g - g.mean(dim=1, keepdim=True)",
        "p, g = p + 0.0, g + 0.0",
        also=_CALLERS,
        says=("zncc",),
    ),
    mutant(
        "psnr-of-two",
        f"{_METRICS} psnr",
        "g[i : i + 1], data_range=1.0",
        "g[i : i + 1], data_range=2.0",
        also=_CALLERS,
        says=("psnr",),
    ),
    mutant(
        "ssim-of-the-batch",
        f"{_METRICS} ssim",
        "return values.reshape(-1)",
        "return values.mean().expand(len(p))",
        also=_CALLERS,
        says=("ssim",),
    ),
    mutant(
        "r2-about-zero",
        f"{_METRICS} r_squared",
        "(target - target.mean(dim=(0, 2, 3), keepdim=True)).square().sum()",
        "target.square().sum()",
        says=("r_squared", "R^2", "r2"),
    ),
    mutant(
        "prediction-binarised-when-judged",
        f"{_TASK} ShadowTask.judge",
        "return per_image_metrics(prediction, ",
        "return per_image_metrics((prediction > 0.5).float(), ",
    ),
    mutant(
        "prediction-judged-against-itself",
        f"{_TASK} ShadowTask.judge",
        "self.target(batch).to(prediction.device))",
        "prediction * 0.99)",
    ),
    mutant(
        "lower-rmse-is-worse",
        f"{_TASK} RMSE",
        'RMSE = Metric("rmse", "RMSE", higher_is_better=False, form=".4f")',
        'RMSE = Metric("rmse", "RMSE", form=".4f")',
        also=(f"{_TASK} ShadowTask",),
        says=("rmse", "RMSE"),
    ),
    mutant(
        "criterion-the-wrong-way-round",
        "shadowlab/tasks/task.py Criterion.met_by",
        _MET,
        _MET.replace(">=", "<").replace("<=", ">"),
        says=("criterion", "soft_iou"),
    ),
    mutant(
        "criterion-of-any-metric",
        "shadowlab/tasks/task.py Criterion.met_by",
        "        return all(\n" + _MET,
        "        return any(\n" + _MET,
        says=("criterion",),
    ),
    mutant(
        "direction-lost-in-the-records",
        "shadowlab/charts.py Metric.from_json",
        'content.get("higher_is_better") is not False',
        'content.get("higher_is_better") is not None',
        stages=("check-forward", "train"),
    ),
    mutant(
        "prediction-mirrored-when-decoded",
        "shadowlab/models/vae.py ImageVae.decode_grey",
        "((self.decode(latents)[:, :1] + 1.0) / 2.0)",
        "((self.decode(latents)[:, :1].flip(-1) + 1.0) / 2.0)",
        also=(f"{_TASK} ShadowTask.decode", "shadowlab/models/vae.py ImageVae.decode"),
    ),
    mutant(
        "prediction-inverted-when-decoded",
        "shadowlab/models/vae.py ImageVae.decode_grey",
        "((self.decode(latents)[:, :1] + 1.0) / 2.0)",
        "((1.0 - self.decode(latents)[:, :1]) / 2.0)",
        more=(
            Edit(
                "shadowlab/models/vae.py",
                "maps.float().expand(-1, 3, -1, -1) * 2.0 - 1.0)",
                "1.0 - maps.float().expand(-1, 3, -1, -1) * 2.0)",
            ),
        ),
        also=(f"{_TASK} ShadowTask.decode", "shadowlab/models/vae.py ImageVae.encode_grey"),
    ),
)
