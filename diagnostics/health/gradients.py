"""Rules of gradients that explode or vanish."""

import math

import torch
from torch import Tensor

from diagnostics.health.rule import Finding, column_pieces, number, rule
from diagnostics.records import History, LayerTable

RECENT = 5  # records whose median is judged: one spike is what clipping is for
EXPLODED = 10.0
MIN_BEFORE = 10  # records to compare with
MAX_LAG = 256  # records

VANISHED = 1e-3
VANISHED_IN_DEPTH = 1e-4
MIN_RECORDS = 10
MIN_DEPTH = 8  # layers


@rule(
    "exploding-gradients",
    threshold=f"the median norm of {RECENT} steps is above {EXPLODED:g} times the largest of the run's first half (at "
    f"most of all but the last {MAX_LAG} steps; {MIN_BEFORE} steps at least), and the loss has not fallen; alarm where "
    "it lasts to the end",
    source="Pascanu et al. 2013 (arXiv 1211.5063) clip at half to ten times the norm's running average, so that ten "
    "times its largest value is outside of what clipping is meant for",
    live=True,
)
def exploding(history: History) -> list[Finding]:
    """Gradients that grow beyond all that the run has seen, and stay there: it diverges, clipped or not.

    The norm before clipping is judged. A single spike is not, nor growth while the loss falls (a network whose last
    layer begins at zero), nor the norms of skipped steps. The layer named is the one whose gradient grew the most.
    """
    norms = history.numbers("grad_norm")
    kept = norms.isfinite() & ~history.skipped()
    if int(kept.sum()) < MIN_BEFORE + RECENT:
        return []
    norms, losses = norms[kept], history.numbers("loss")[kept]
    steps = torch.tensor(history.steps())[kept].tolist()
    at = torch.arange(len(norms))
    until = at - (at.clamp(max=2 * MAX_LAG) // 2).clamp(min=RECENT)  # the last of the steps compared with
    largest = norms.cummax(0).values[until.clamp(min=0)]
    recent = norms.clone()
    recent[RECENT - 1 :] = norms.unfold(0, RECENT, 1).median(1).values
    high = (until >= MIN_BEFORE - 1) & (recent > EXPLODED * largest) & (largest > 0)
    hits = [i for i in high.nonzero().flatten().tolist() if not _fell(losses, i, int(until[i]))]
    if not hits:
        return []
    first = hits[0]
    lasts = bool(recent[-1] > EXPLODED * largest[first])
    return [
        Finding(
            "exploding-gradients",
            "alarm" if lasts else "warning",
            steps[first],
            f"gradient norm {number(float(recent[first]))} (median of {RECENT} steps), "
            f"{number(float(recent[first] / largest[first]))} times the largest before, {number(float(largest[first]))}"
            f"{'' if lasts else '; it came down again'}",
            "lower the learning rate or warm it up for longer; clip the gradient norm",
            layer=_grown_most(history.layers("norm", "gradient"), steps[first]),
        )
    ]


def _fell(losses: Tensor, now: int, before: int) -> bool:
    recent = losses[now - RECENT + 1 : now + 1].median()
    return bool(recent < losses[max(0, before - 10 * RECENT + 1) : before + 1].median())


def _grown_most(table: LayerTable, step: int) -> str | None:
    """Layer whose gradient at the last record until `step` is the most times its median before."""
    columns = [i for i, at in enumerate(table.steps) if at <= step]
    if len(columns) < 3:
        return None
    growth = table.values[:, columns[-1]] / _medians(table.values[:, : len(columns) - 1])  # the steps ascend
    growth = growth.where(growth.isfinite(), 0.0)
    row = int(growth.argmax())
    return table.names[row] if growth[row] > 1 else None


@rule(
    "vanishing-gradients",
    threshold=f"in each of the last {RECENT} records with statistics (of {MIN_RECORDS} at least): a layer's gradient, "
    f"as a multiple of the median layer's, is below {VANISHED:g} of what it was in the first half of the records; or "
    f"the first quarter of {MIN_DEPTH} or more layers gets less than {VANISHED_IN_DEPTH:g} of the last quarter's",
    source="Glorot and Bengio 2010 (AISTATS 9, figure 7: gradients of the same variance in every layer); "
    "Pascanu et al. 2013 (arXiv 1211.5063)",
)
def vanishing(history: History) -> list[Finding]:
    """Layers that the loss no longer reaches: what they hold is frozen, or moved by rounding alone.

    Judged is the root mean square of the gradient by a layer's output, which does not depend on its size, against the
    other layers of the same step, because all gradients fall together when a loss does. A layer that was always
    small is left alone: what stands ahead of a normalisation may get none by design. Exact zeros are for `dead-layer`.
    """
    names, measured = history.layer_names, history.measured_steps
    rms = torch.empty(len(names), len(measured), dtype=torch.float64)  # in pieces: tables of long runs are large
    for piece in column_pieces(history):
        mean, std = (history.layers(key, "gradient", piece).values for key in ("mean", "std"))
        torch.hypot(mean, std, out=mean)
        rms[:, piece] = mean.masked_fill_(~((mean > 0) & mean.isfinite()), math.nan)
    seen = ~rms.isnan().all(0)
    rms, steps = (
        rms if bool(seen.all()) else rms[:, seen],
        [step for step, here in zip(measured, seen.tolist(), strict=True) if here],
    )
    if len(steps) < MIN_RECORDS:
        return []
    return _over_depth(names, rms, steps) or _over_time(names, rms, steps)


def _over_time(names: tuple[str, ...], rms: Tensor, steps: list[int]) -> list[Finding]:
    median = _medians(rms.T)
    early = slice(1, max(2, len(steps) // 2))  # the first step may meet zero-initialised layers
    before = _medians(rms[:, early] / median[early])
    fallen = rms[:, -RECENT:] / median[-RECENT:] / before[:, None]
    found = (fallen < VANISHED).all(1) & (before > VANISHED)
    return [
        Finding(
            "vanishing-gradients",
            "warning",
            steps[-1],
            f"gradient of rms {number(float(rms[row, -1]))}: {number(float(fallen[row, -1]))} of what it was against "
            "the median layer in the first half of the run",
            "look for saturation behind this layer (softmax, sigmoid, a gate) and at the activations there",
            layer=names[row],
        )
        for row in found.nonzero().flatten().tolist()
    ]


def _medians(values: Tensor) -> Tensor:
    """Of each row, NaN left out, (rows,). In pieces: a median takes copies, and tables of long runs are large."""
    return torch.cat([rows.nanmedian(1).values for rows in values.split(64)])


def _over_depth(names: tuple[str, ...], rms: Tensor, steps: list[int]) -> list[Finding]:
    rows = (~rms[:, -RECENT:].isnan().all(1)).nonzero().flatten()
    if len(rows) < MIN_DEPTH:
        return []
    quarter = len(rows) // 4
    first = rms[rows[:quarter]][:, -RECENT:].nanmedian(0).values
    last = rms[rows[-quarter:]][:, -RECENT:].nanmedian(0).values
    if not bool((first / last < VANISHED_IN_DEPTH).all()):
        return []
    return [
        Finding(
            "vanishing-gradients",
            "warning",
            steps[-1],
            f"the first {quarter} of {len(rows)} layers get gradients of rms {number(float(first[-1]))}, the last "
            f"{quarter} of {number(float(last[-1]))}",
            "use residual connections, normalisation or another initialisation, or unsaturated activations",
            layer=names[int(rows[0])],
        )
    ]
