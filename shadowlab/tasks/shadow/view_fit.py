"""Finding the camera that a data set's pictures were taken by, from its training split alone.

The inflated silhouette is compared with the true shadows; what is sought is the view under which they overlap most.
Legend: H W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shadowlab.console import Reporter
from shadowlab.data import SampleSet, split_by_object
from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import Config
from shadowlab.tasks.shadow.baselines import inflated_silhouette
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.light import Light
from shadowlab.tasks.shadow.metrics import per_image_metrics
from shadowlab.tasks.shadow.samples import Sample
from shadowlab.tasks.shadow.view import RANGES, View, ViewFit, mask_digest, read_fit

_SIDE = 128  # pixels: a view says the same of any size
_MOST_SAMPLES = 64
_ROUGH_SAMPLES = 24  # by which the place to start from is chosen
_STARTS = [
    (elevation, side) for elevation in (15.0, 30.0, 45.0) for side in (1.5, 2.5, 4.0)
]  # half width of the picture
_ROUNDS = 4
_MOST_STEPS = 6  # in one direction and round
_FIGURES = ("soft_iou", "rmse", "zncc")


def fit_view(config: Config, out: Path, reporter: Reporter) -> ViewFit:
    """Fit a `View` to the training split of the configured data set, and write it to `out`.

    The split is that of `train`: by object, from data.validation_fraction and the seed. At most 64 samples are used, of
    as many objects as can be, drawn by the seed.

    Args:
        out: a new file, or an earlier fit, which is replaced.

    Raises:
        UserError: the data set is faulty or has fewer than two objects, no sample has a shadow, or `out` is no fit.
    """
    _check_replaceable(out)
    data = open_dataset(config.data.path, _SIDE)
    for notice in data.notices:
        reporter.warn(notice)
    split = split_by_object(data.object_ids, config.data.validation_fraction, config.seed)
    chosen = _spread(data, split.train, config.seed)
    cases = [_case(data[i]) for i in chosen]
    if not any(case.truth.any() for case in cases):
        raise UserError(f"{data.name}: no shadow in {len(cases)} training samples; there is nothing to fit")
    view = _search(cases, reporter)
    fit = ViewFit(
        view=view,
        data=data.name,
        fingerprint=data.fingerprint(),
        objects={data.object_ids[i]: mask_digest(data.entry(i)) for i in sorted(chosen)},
        figures=_figures(cases, view),
        num_samples=len(chosen),
    )
    fit.write(out)
    return fit


@dataclass(frozen=True, eq=False)
class _Case:
    mask: NDArray[np.bool_]
    light: Light
    truth: NDArray[np.float32]


def _case(sample: Sample) -> _Case:
    theta, phi, size = sample.light.tolist()
    return _Case(sample.mask[0].numpy() > 0, (theta, phi, size), sample.shadow[0].numpy())


def _check_replaceable(out: Path) -> None:
    if out.exists():
        try:
            read_fit(out)
        except UserError as error:
            raise UserError(f"--out {out}: there is something else than a fit; choose another file") from error


def _spread(data: SampleSet[Sample], train: Sequence[int], seed: int) -> list[int]:
    """One sample of each object, then a second one, until there are enough."""
    taken: dict[str, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for i in sorted(train, key=lambda i: derive_seed(seed, "fit-baselines", data.ids[i])):
        turn = taken[data.object_ids[i]] = taken.get(data.object_ids[i], 0) + 1
        ranked.append((turn, derive_seed(seed, "fit-baselines/object", data.object_ids[i]), i))
    return [i for _, _, i in sorted(ranked)[:_MOST_SAMPLES]]


def _overlap(cases: Sequence[_Case], view: View) -> float:
    """Mean soft IoU."""
    values = []
    for case in cases:
        shadow = inflated_silhouette(case.mask, *case.light, view)
        union = float(np.maximum(shadow, case.truth).sum())
        values.append(float(np.minimum(shadow, case.truth).sum()) / union if union > 0 else 1.0)
    return float(np.mean(values))


def _figures(cases: Sequence[_Case], view: View) -> dict[str, float]:
    shadows = np.stack([inflated_silhouette(case.mask, *case.light, view) for case in cases])[:, None]
    truth = np.stack([case.truth for case in cases])[:, None]
    metrics = per_image_metrics(torch.from_numpy(shadows), torch.from_numpy(truth))
    return {name: round(float(metrics[name].mean()), 4) for name in _FIGURES}


def _search(cases: Sequence[_Case], reporter: Reporter) -> View:
    """The best of a coarse grid, then one number at a time by steps that shrink.

    The four numbers are elevation, half the width of the scene at the origin, distance for it, and thickness: each of
    them changes something that the others do not.
    """
    total = len(_STARTS) + 8 * _ROUNDS
    step = 0
    with reporter.start("fit-baselines", total, noun="trial"):
        rough = cases[:_ROUGH_SAMPLES]
        best, best_overlap = None, -1.0
        for elevation, side in _STARTS:
            tried = _view(elevation, side, 8.0, 1.0)
            overlap = _overlap(rough, tried)
            if overlap > best_overlap:
                best, best_overlap = tried, overlap
            step += 1
            reporter.advance(step, total, {"soft IoU": best_overlap}, log=False)
        assert best is not None
        best_overlap = _overlap(cases, best)
        for turn in range(_ROUNDS):
            for name in ("elevation", "side", "thickness", "distance"):
                for sign in (1, -1):
                    step += 1
                    for _ in range(_MOST_STEPS):
                        tried = _moved(best, name, sign * 2.0**-turn)
                        overlap = _overlap(cases, tried)
                        reporter.advance(step, total, {"soft IoU": max(overlap, best_overlap)}, log=False)
                        if overlap <= best_overlap:
                            break
                        best, best_overlap = tried, overlap
    return replace(best, **{name: round(getattr(best, name), 3) for name in RANGES})


def _view(elevation: float, side: float, distance: float, thickness: float) -> View:
    """side: half the width that the picture shows at the origin; values out of range are moved to its end."""
    given = {
        "elevation": elevation,
        "distance": distance,
        "field_of_view": math.degrees(2 * math.atan(side / distance)),
        "thickness": thickness,
    }
    return View(**{name: min(max(given[name], low), high) for name, (low, high) in RANGES.items()})


def _moved(view: View, name: str, amount: float) -> View:
    """amount: 1 is 8 degrees of elevation, or a factor of 1.25."""
    side = view.distance * math.tan(math.radians(view.field_of_view / 2))
    factor = 1.25**amount
    return _view(
        view.elevation + 8 * amount * (name == "elevation"),
        side * (factor if name == "side" else 1),
        view.distance * (factor**2 if name == "distance" else 1),
        view.thickness * (factor if name == "thickness" else 1),
    )
