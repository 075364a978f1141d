"""The views that a configuration asks for, opened."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowlab.settings import Config, values
from shadowlab.views.tensorboard import Board
from shadowlab.views.trackers.mlflow_session import MlflowSession
from shadowlab.views.trackers.tracker import Beginning, Session, Tracker
from shadowlab.views.trackers.wandb_session import WandbSession

if TYPE_CHECKING:
    from shadowlab.training import Sink

TRACKERS: Mapping[str, tuple[str, Callable[[Beginning], Session]]] = {
    "wandb": ("W&B", WandbSession),
    "mlflow": ("MLflow", MlflowSession),
}
"""Name in `tracking` -> name for people, and what opens a session."""


def open_views(config: Config, run: Path, *, resumed_at: int | None = None) -> "list[Sink]":
    """Sinks in the order of `tracking`; a tracker's library is not imported yet.

    Args:
        run: folder of the run. resumed_at: steps that were done before; below 1 and None: none were.
    """
    name = run.resolve().name
    if resumed_at is not None and resumed_at > 0:
        name = f"{name} from step {resumed_at}"
    views: list[Sink] = []
    for kind in config.tracking:
        if kind == "tensorboard":
            views.append(Board(run / "tensorboard", resumed_at=resumed_at))
        else:
            views.append(tracker(kind, run, values(config), name))
    return views


def tracker(kind: str, run: Path, config: Mapping[str, Any], name: str) -> Tracker:
    """One of `TRACKERS`, for a session called `name`."""
    shown, begin = TRACKERS[kind]
    return Tracker(shown, begin, Beginning(run, config, name))
