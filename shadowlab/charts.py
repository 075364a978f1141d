"""What a task says of the numbers of its evaluations, as the header of a run's records carries it to every view: which
charts are drawn, and of each metric its name and the better direction."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diagnostics.records import ChartLine, ChartRecord, MetricRecord

SAMPLES = "{samples}"


@dataclass(frozen=True)
class Metric:
    """One number that a task judges a picture by."""

    name: str
    """Its key in `Task.judge` and in records."""
    text: str
    """For people."""
    higher_is_better: bool = True
    form: str = ".3f"
    """How it is printed."""

    @property
    def direction(self) -> str:
        """`higher is better`."""
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    def to_json(self) -> MetricRecord:
        """As the header of the records has it."""
        return {"name": self.name, "text": self.text, "higher_is_better": self.higher_is_better}

    @classmethod
    def from_json(cls, content: Any) -> "Metric":
        """Inverse of `to_json`; unknown keys are ignored.

        Raises:
            ValueError: no metric; says what is wrong.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"a metric is an object, not {content!r}")
        return cls(_text(content, "name"), _text(content, "text"), content.get("higher_is_better") is not False)


R2 = Metric("r2", "R^2")
"""Of every task: variance of the target's latents that one-step generation explains."""

COMMON = (
    Metric("loss", "Loss", higher_is_better=False, form=".4f"),
    Metric("r2", "R²"),
    Metric("soft_iou", "Soft IoU"),
    Metric("rmse", "RMSE", higher_is_better=False, form=".4f"),
    Metric("si_rmse", "Scale-invariant RMSE", higher_is_better=False, form=".4f"),
    Metric("zncc", "Correlation (ZNCC)"),
    Metric("psnr", "PSNR in dB", form=".2f"),
    Metric("ssim", "SSIM"),
)
"""What is measured of every task, and the metrics of `shadowlab.metrics`, with names as tables have them."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    """In the legend."""
    key: str
    """Of the records of evaluations (kinds `validation` and `fixed_grid`): `r2`."""


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes."""

    title: str
    """`{samples}` stands for what was judged: held-out samples, or the fixed grid."""
    curves: tuple[Curve, ...]
    unit: str = ""

    def to_json(self) -> ChartRecord:
        """As the header of the records has it."""
        curves: list[ChartLine] = [{"label": curve.label, "key": curve.key} for curve in self.curves]
        return {"title": self.title, "unit": self.unit, "curves": curves}

    @classmethod
    def from_json(cls, content: Any) -> "Chart":
        """Inverse of `to_json`; unknown keys are ignored.

        Raises:
            ValueError: not a chart; says what is wrong.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"a chart is an object, not {content!r}")
        curves = content.get("curves")
        if not isinstance(curves, list) or not all(isinstance(curve, Mapping) for curve in curves):
            raise ValueError(f"`curves` of a chart is a list of objects, not {curves!r}")
        lines = tuple(Curve(_text(curve, "label"), _text(curve, "key")) for curve in curves)
        return cls(_text(content, "title"), lines, _text(content, "unit") if "unit" in content else "")


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise ValueError(f"`{key}` of a chart is text, not {value!r}")
    return value


def of_training_data(charts: tuple[Chart, ...]) -> tuple[Chart, ...]:
    """The same for a run that is validated on what it is trained on: no view of it says otherwise."""
    known = "TRAINING DATA (validated on what is trained on: this is memory)"
    return tuple(replace(chart, title=chart.title.replace(SAMPLES, known)) for chart in charts)
