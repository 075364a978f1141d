"""MLflow: a session in `RUN/mlflow`, or on the server that MLFLOW_TRACKING_URI names."""

import os
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from diagnostics.statistics import Histogram
from shadowlab.views.trackers.tracker import Beginning

_MOST_METRICS, _MOST_PARAMETERS = 1000, 100  # of one request
_MOST_CHARACTERS = 5000  # of a parameter or a tag
_OWN = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""Local folders have to be asked for since MLflow 3.13; its own telemetry would need a network."""


class MlflowSession:
    """One run of MLflow, in the experiment of the run."""

    def __init__(self, beginning: Beginning) -> None:
        """Raises whatever mlflow raises."""
        for name, value in _OWN.items():
            os.environ.setdefault(name, value)  # read at its import
        from mlflow import MlflowClient, entities

        self._entities: Any = entities
        place = os.environ.get("MLFLOW_TRACKING_URI") or (beginning.folder / "mlflow").resolve().as_uri()
        self._client: Any = MlflowClient(tracking_uri=place)
        known = self._client.get_experiment_by_name(beginning.group)
        number = known.experiment_id if known is not None else self._client.create_experiment(beginning.group)
        self._run: str = self._client.create_run(number, run_name=beginning.name).info.run_id
        parameters = [entities.Param(key, str(value)[:_MOST_CHARACTERS]) for key, value in beginning.config.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._run, params=parameters[first : first + _MOST_PARAMETERS])

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_named(key), value, now, step) for key, value in numbers.items()]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + _MOST_METRICS])

    def histogram(self, step: int, name: str, content: Histogram) -> None:
        """MLflow has none: the range of its finite values."""
        self.numbers(step, {f"{name}/low": content.low, f"{name}/high": content.high})

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._client.set_tag(self._run, _named(tag), f"step {step}: {markdown}"[:_MOST_CHARACTERS])

    def picture(self, step: int, tag: str, picture: Image.Image) -> None:
        self._client.log_image(self._run, picture, key=tag, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _named(name: str) -> str:
    """MLflow refuses all but letters, digits and `_-. /:`."""
    return "".join(one if one.isalnum() or one in "_-. /:" else "_" for one in name)
