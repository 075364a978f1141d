"""What is drawn of the evaluations of an albedo model; the first chart holds its main numbers."""

from shadowlab.charts import SAMPLES, Chart, Curve

CHARTS = (
    Chart(f"Quality on {SAMPLES}", (Curve("R²", "r2"), Curve("SSIM", "ssim"), Curve("beauty, SSIM", "beauty_ssim"))),
    Chart(f"PSNR in dB on {SAMPLES}", (Curve("model", "psnr"), Curve("beauty", "beauty_psnr"))),
    Chart(f"si-RMSE on {SAMPLES}", (Curve("model", "si_rmse"), Curve("beauty", "beauty_si_rmse"))),
    Chart("Answer to the beauty (0: unseen)", (Curve("beauty", "response_beauty"),)),
)
