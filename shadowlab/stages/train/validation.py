"""Validation in a run: the averaged weights on held-out samples, recorded and drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diagnostics.records import evaluation
from shadowlab.data import SampleSet, Split
from shadowlab.drawing import save_picture
from shadowlab.errors import StageFailedError
from shadowlab.evaluation import FixedGrid, GridResult
from shadowlab.session import Session
from shadowlab.settings import TrainConfig
from shadowlab.stages.train.untouched import untouched
from shadowlab.training import Telemetry, Trainee

_MAX_ROWS = 8  # of a comparison


def is_due(settings: TrainConfig, step: int) -> bool:
    """Whether the weights after `step` steps are judged."""
    return step % settings.validate_every == 0 or step == settings.max_steps


def validation_grid(session: Session, dataset: SampleSet[Any], split: Split) -> FixedGrid:
    """Every n-th held-out sample, `validation.num_samples` of them: consecutive ones show the same object."""
    config, task = session.config, session.task
    wanted = min(config.validation.num_samples, len(split.validation))
    chosen = [split.validation[i * len(split.validation) // wanted] for i in range(wanted)]
    return FixedGrid(
        task,
        task.collate([dataset[i] for i in chosen]),
        timesteps=config.validation.timesteps,
        num_noises=config.validation.num_noises,
        seed=config.seed,
        chunk=config.train.batch_size,
    )


def validate(
    session: Session, grid: FixedGrid, trainee: Trainee, telemetry: Telemetry, step: int, *, write: bool = True
) -> GridResult:
    """Judge the averaged weights (the raw ones where there is no EMA). Every rank does: no rank waits for another.

    write: False right after a resume, where the run has this step's record already, or wants none.

    Raises:
        StageFailedError: a loss or a prediction is not finite, or judging changed what is trained.
    """
    task, run = session.task, session.run
    trainee.processes.at("validation")
    with untouched(trainee, step):  # noqa: SIM117
        with trainee.averaged_weights():
            result = grid.evaluate(trainee.unet, trainee.precision, trainee.processes)
            sweep = grid.sweep(trainee.unet, trainee.precision) if write and task.draws_sweep else {}
    if write:
        telemetry.write(evaluation("validation", step, result.numbers()))
    _require_finite(result, sweep, grid.batch.ids, step)
    if write and trainee.processes.is_main:
        picture = task.comparison_figure(grid.batch, result.prediction, _MAX_ROWS)
        save_picture(picture, run.samples / f"step-{step:08d}.png")
        telemetry.image("validation/comparison", picture, step)
        if sweep:
            picture = task.sweep_figure(grid.batch, sweep)
            save_picture(picture, run.samples / f"{task.sweep_name}-step-{step:08d}.png")
            telemetry.image(f"validation/{task.sweep_name.replace('-', '_')}", picture, step)
    session.reporter.say(f"step {step}  validation loss {result.loss:.4f}  R^2 {result.r2:.3f}  {result.line(task)}")
    return result


def _require_finite(
    result: GridResult, sweep: Mapping[str, Sequence[tuple[float, Tensor]]], ids: Sequence[str], step: int
) -> None:
    bad = [f"grid loss at t = {t:g} is {loss}" for t, loss in result.loss_by_t.items() if not math.isfinite(loss)]
    finite = result.prediction.isfinite().flatten(1).all(dim=1).tolist()
    bad += [f"prediction for {name} is not finite" for name, good in zip(ids, finite, strict=True) if not good]
    bad += [f"the answer to {name} is {value}" for name, value in result.responses.items() if not math.isfinite(value)]
    for name, row in sweep.items():
        bad += [
            f"what it generates for {name} = {value:g} is not finite"
            for value, one in row
            if not bool(one.isfinite().all())
        ]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise StageFailedError(
            f"validation at step {step}: {bad[0]}{more}; the weights judged are the EMA's where there is one: look at "
            f"the largest activations in TensorBoard; then move the checkpoint of step {step} away, if there is one, "
            "and go on from the one before by --resume --set optimizer.learning_rate=RATE, or start anew in fp32"
        )
