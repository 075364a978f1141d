"""What is drawn of the evaluations of an insertion model; the first chart holds its main numbers."""

from shadowlab.charts import SAMPLES, Chart, Curve

CHARTS = (
    Chart(
        f"Quality on {SAMPLES}",
        (
            Curve("R²", "r2"),
            Curve("SSIM inside", "ssim_inside"),
            Curve("copy-paste, SSIM inside", "copy-paste_ssim_inside"),
        ),
    ),
    Chart(
        f"PSNR inside the mask in dB on {SAMPLES}",
        (Curve("model", "psnr_inside"), Curve("copy-paste", "copy-paste_psnr_inside")),
    ),
    Chart(
        f"Loss by region on {SAMPLES}",
        (Curve("inserted region", "loss_inserted"), Curve("all of the target", "loss_target")),
    ),
    Chart(
        "Answer to the conditions (0: unseen)",
        (
            Curve("object", "response_object"),
            Curve("masked picture", "response_masked picture"),
            Curve("mask", "response_mask"),
        ),
    ),
)
