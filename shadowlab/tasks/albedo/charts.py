"""What is drawn of the evaluations of an albedo model; the first chart holds its main numbers."""

from dataclasses import replace

from shadowlab.charts import SAMPLES, Chart, Curve

CHARTS = (
    Chart(f"Quality on {SAMPLES}", (Curve("R²", "r2"), Curve("SSIM", "ssim"), Curve("beauty, SSIM", "beauty_ssim"))),
    Chart(f"PSNR in dB on {SAMPLES}", (Curve("model", "psnr"), Curve("beauty", "beauty_psnr"))),
    Chart(f"si-RMSE on {SAMPLES}", (Curve("model", "si_rmse"), Curve("beauty", "beauty_si_rmse"))),
    Chart("Answer to the beauty (0: unseen)", (Curve("beauty", "response_beauty"),)),
)


def of_training_data(charts: tuple[Chart, ...]) -> tuple[Chart, ...]:
    """The same for a run that is validated on what it is trained on: no view of it says otherwise."""
    known = "TRAINING DATA (validated on what is trained on: this is memory)"
    return tuple(replace(chart, title=chart.title.replace(SAMPLES, known)) for chart in charts)
