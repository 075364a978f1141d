"""Where the records of a run are shown while it trains: TensorBoard, and trackers of experiments (W&B, MLflow).

All are views: metrics.jsonl is the truth, from which `shadowlab track` writes any of them again.
"""

from shadowlab.views.trackers.rebuild import run_track
from shadowlab.views.trackers.sinks import TRACKERS, open_views

__all__ = ["TRACKERS", "open_views", "run_track"]
