"""What is drawn of the evaluations of a shadow model; the first chart holds its main numbers."""

from shadowlab.charts import Chart, Curve

_RESPONSES = tuple(Curve(name, f"response_{name}") for name in ("theta", "phi", "size"))
_QUALITY = (
    Chart("Quality on {samples}", (Curve("R²", "r2"), Curve("soft IoU", "soft_iou"))),
    Chart("RMSE", (Curve("model", "rmse"), Curve("all black", "black_rmse"))),
)


def _answers(responses: tuple[Curve, ...]) -> Chart:
    return Chart("Answer to each condition (0: unseen)", responses)


CHARTS = (*_QUALITY, _answers(_RESPONSES))
WITH_INTENSITY = (*_QUALITY, _answers((*_RESPONSES, Curve("intensity", "response_intensity"))))
