"""W&B: a session in `RUN/wandb`, offline unless a key or WANDB_MODE says otherwise."""

import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from diagnostics.statistics import Histogram
from shadowlab.views.trackers.tracker import Beginning

_AXIS = "step"
_OPENING_SECONDS = 30.0  # wandb#2701, wandb#4217: it may wait forever


class WandbSession:
    """One run of W&B.

    W&B counts its own rows; the optimizer's step is a number among them, and the axis of all others.
    """

    def __init__(self, beginning: Beginning) -> None:
        """Raises whatever wandb raises."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it sends crashes home, read at its import
        import wandb

        self._wandb: Any = wandb
        self._run: Any = self._wandb.init(
            dir=str(beginning.folder),
            project=os.environ.get("WANDB_PROJECT", "shadowlab"),
            group=beginning.group,
            name=beginning.name,
            config=dict(beginning.config),
            mode=mode(os.environ),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                init_timeout=_OPENING_SECONDS,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,  # of the machine, by a thread of its own
            ),
        )
        self._run.define_metric(_AXIS, hidden=True)
        self._run.define_metric("*", step_metric=_AXIS)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        self._log(step, numbers)

    def histogram(self, step: int, name: str, content: Histogram) -> None:
        """From counts: `wandb.Histogram` of values raises where one of them is NaN."""
        num = len(content.counts)
        at = [i / num for i in range(num + 1)]  # the range itself may exceed float64
        edges = [content.low * (1 - share) + content.high * share for share in at]
        self._log(step, {name: self._wandb.Histogram(np_histogram=(content.counts, edges))})

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._run.summary[tag] = f"step {step}: {markdown}"

    def picture(self, step: int, tag: str, picture: Image.Image) -> None:
        self._log(step, {tag: self._wandb.Image(picture)})

    def close(self) -> None:
        self._run.finish()

    def _log(self, step: int, content: Mapping[str, Any]) -> None:
        self._run.log({_AXIS: step, **content})


def mode(environment: Mapping[str, str]) -> str:
    """`offline` without a key: nothing is asked for, and nothing leaves the machine. WANDB_MODE decides over all."""
    return environment.get("WANDB_MODE") or ("online" if environment.get("WANDB_API_KEY") else "offline")
