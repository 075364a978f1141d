"""Proof that a memorised result comes from every input, and not from those alone that tell the samples apart.

The model is judged on the fixed grid as it is, and once more where one input is exchanged among the samples, or taken
out: the loss at t = 0, whose x_t is noise alone, must grow. In later t x_t shows the target more and more, so that
x_t and t are judged there: by what a model could reach that ignores them.

Where the result is far from memorised nothing is judged: a model that has learned little uses little.

Legend: n samples, h w latents.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from shadowlab.evaluation import FixedGrid, GridResult
from shadowlab.models import Precision
from shadowlab.tasks import Ablation

MARGIN = 0.01
"""Share by which the loss must grow. An input without effect gives exactly 0, the weakest of those that are used
0.06 (the mask, which the object's picture shows as well), others 0.08 to 2.9: `tiny` after 300 steps."""
MIN_R2 = 0.5
"""Of one-step generation, from which on inputs are judged."""
MIN_ANSWER = 1e-4
"""Relative change of the prediction where the model is told another t: a model need not use t, for x_t shows it, but it
must be given it. float32's rounding is 6e-8."""
_LEAST_LOSS = 1e-9  # of a perfect memory
PATIENCE = 0.75
"""Of the loss that a model could reach without x_t, or without t."""
LAST_T = 0.9
"""Later, a target that is known to a few percent says no more than none (the velocity divides it by 1 - t)."""


@dataclass(frozen=True)
class InputProof:
    """What was found of one input; a row of stages.json and of the report."""

    input: str
    passed: bool
    seen: str
    mend: str
    """What to look at where it failed."""
    judged: bool = True
    """False where it is the same in all samples, or the result too far from memorised."""


@dataclass(frozen=True)
class InputProofs:
    """All of them."""

    rows: tuple[InputProof, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def failed(self) -> tuple[InputProof, ...]:
        return tuple(row for row in self.rows if not row.passed)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def text(self) -> str:
        """One line: what each input showed."""
        return "; ".join(f"{row.input}: {row.seen}" for row in self.rows)

    def message(self) -> str:
        """Of the failed ones, for the stage's message."""
        named = " and ".join(row.input for row in self.failed)
        found = "; ".join(f"{row.input}: {row.seen}; {row.mend}" for row in self.failed)
        return f"the result does not come from {named}: {found}"


def inputs_of(grid: FixedGrid) -> list[Ablation]:
    """What the grid's task gives for its samples; empty where it gives none, or there is but one sample."""
    ablations = getattr(grid.task, "ablations", None)
    return [] if ablations is None or len(grid.batch) < 2 else list(ablations(grid.batch, grid.encode))


def judge_inputs(
    grid: FixedGrid,
    result: GridResult,
    ablations: Sequence[Ablation],
    unet: torch.nn.Module,
    precision: Precision,
    *,
    num_objects: int,
    noise_share: float,
) -> InputProofs:
    """Every input, then x_t and t. `result`: of the same weights. num_objects: that the grid's samples show.

    noise_share: of the training samples, those at t = 0; with 1 there is no other t to judge.
    """
    if not result.r2 >= MIN_R2:
        seen = f"not judged: R^2 is {result.r2:.3g}, from {MIN_R2:g} on it is"
        return InputProofs(tuple(InputProof(one.name, True, seen, "", judged=False) for one in ablations))
    rows = []
    own = grid.loss_when_given(unet, precision, 0.0)
    for one in ablations:
        if one.exchanged is None:
            rows.append(_constant(one, len(grid.batch), num_objects))
            continue
        given = {"exchanged": one.exchanged, "removed": one.removed}
        losses = {
            how: grid.loss_when_given(unet, precision, 0.0, encoded=encoded)
            for how, encoded in given.items()
            if encoded is not None
        }
        growth = {how: (loss - own) / max(own, _LEAST_LOSS) for how, loss in losses.items()}
        rows.append(
            InputProof(
                one.name,
                all(value >= MARGIN for value in growth.values()),
                f"the loss at t = 0 grows by {' and '.join(f'{100 * v:.3g} % {how}' for how, v in growth.items())} "
                f"(asked for: {MARGIN:.0%})",
                f"follow {one.name} from the data to the model: is it read, scaled, embedded, concatenated, handed in?",
            )
        )
    if ablations and noise_share < 1.0:
        rows += _times(grid, own, unet, precision)
    return InputProofs(tuple(rows))


def _constant(one: Ablation, num_samples: int, num_objects: int) -> InputProof:
    if one.belongs_to == "object" and num_objects > 1:
        seen = f"it is the same in samples of {num_objects} objects"
        return InputProof(one.name, False, seen, f"look at how {one.name} is read: objects differ, it must, too")
    return InputProof(one.name, True, f"not judged: the same in all {num_samples} samples", "", judged=False)


def _times(grid: FixedGrid, at_noise: float, unet: torch.nn.Module, precision: Precision) -> list[InputProof]:
    """x_t: the loss at each t beats what a model could reach that does not see it. t: it beats, too, what one could
    that takes every x_t for noise, and the prediction answers to what the model is told."""
    judged = [t for t in grid.timesteps if 0 < t <= LAST_T]
    if not judged:
        seen = f"not judged: the grid has no t between 0 and {LAST_T:g} (validation.timesteps)"
        return [InputProof(name, True, seen, "", judged=False) for name in ("x_t", "t")]
    losses = {t: grid.loss_when_given(unet, precision, t) for t in judged}
    blind = {t: grid.loss_without_x(t) for t in judged}
    timeless = {t: at_noise + grid.loss_without_t(t) for t in judged}
    answer = grid.answer_to_t(unet, precision, max(judged))
    return [
        InputProof(
            "x_t",
            all(losses[t] <= PATIENCE * blind[t] for t in judged),
            f"loss {_by_t(losses)}; without x_t a model reaches {_by_t(blind)} (asked for: {PATIENCE:g} of it)",
            "look at how x_t is made of noise and data, and whether the same noise is in the target",
        ),
        InputProof(
            "t",
            all(losses[t] <= PATIENCE * timeless[t] for t in judged) and answer >= MIN_ANSWER,
            f"loss {_by_t(losses)}; one that takes x_t for noise reaches {_by_t(timeless)} (asked for: {PATIENCE:g} of "
            f"it); told another t the prediction changes by {answer:.2g} of itself (asked for: {MIN_ANSWER:g})",
            "look at how t is drawn for a step, that it differs among samples, and that the model is told the same t",
        ),
    ]


def _by_t(losses: dict[float, float]) -> str:
    return ", ".join(f"{loss:.3g} at t = {t:g}" for t, loss in losses.items())
