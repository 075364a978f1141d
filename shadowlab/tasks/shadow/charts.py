"""What is drawn of the evaluations of a shadow model; the first chart holds its main numbers."""

from shadowlab.charts import Chart, Curve

CHARTS = (
    Chart("Quality on {samples}", (Curve("R²", "r2"), Curve("soft IoU", "soft_iou"))),
    Chart("RMSE", (Curve("model", "rmse"), Curve("all black", "black_rmse"))),
    Chart(
        "Answer to each condition (0: unseen)",
        tuple(Curve(name, f"response_{name}") for name in ("theta", "phi", "size")),
    ),
)
