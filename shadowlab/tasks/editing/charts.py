"""What is drawn of the evaluations of an edit; the first chart holds its main numbers."""

from shadowlab.charts import SAMPLES, Chart, Curve
from shadowlab.tasks.editing.edits import Edit, EditName
from shadowlab.tasks.editing.metrics import METRICS

_DRAWN: dict[EditName, tuple[str, ...]] = {
    "white-balance": ("rmse", "angular_error", "delta_e"),
    "object-removal": ("inside_rmse", "inside_psnr", "painted_outside_rmse"),
    "paint-to-image": ("rmse", "psnr", "edge_agreement"),
}


def charts_of(edit: Edit) -> tuple[Chart, ...]:
    texts = {metric.name: metric.text for metric in METRICS[edit.name]}
    errors = (
        Chart(f"{texts[name]} on {SAMPLES}", (Curve("model", name), Curve("input", f"input_{name}")))
        for name in _DRAWN[edit.name]
    )
    answers = Chart("Answer to what is given (0: unseen)", tuple(Curve(n, f"response_{n}") for n in edit.inputs[1:]))
    return (Chart(f"Quality on {SAMPLES}", (Curve("R²", "r2"),)), *errors, answers)
