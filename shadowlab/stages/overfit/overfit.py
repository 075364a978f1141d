"""overfit: can the model memorise a handful of samples, and does it use every input for it? If not, a long training run
is a waste.

The training loss is a poor judge: with random t and noise it cannot reach zero. The samples are fixed and so is a
grid of (sample, t, noise) on which the model is judged, together with the pictures it generates in one step. A result
that meets the task's criterion must also come from every input (`inputs.py`); training goes on until it does, for an
input that tells little apart is used late.
"""

from dataclasses import dataclass

import torch

from diagnostics.records import evaluation
from shadowlab.data import sample_indices
from shadowlab.drawing import save_picture
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import StageFailedError, UserError
from shadowlab.evaluation import FixedGrid, GridResult
from shadowlab.models import POLICIES
from shadowlab.plain_text import counted
from shadowlab.runs import began_with
from shadowlab.session import Session
from shadowlab.settings import OptimizerConfig
from shadowlab.stages.overfit.inputs import InputProofs, inputs_of, judge_inputs
from shadowlab.stages.overfit.pairs import first_stranger
from shadowlab.stages.overfit.samples import samples_to_memorise
from shadowlab.stages.result import StageResult
from shadowlab.tasks import Ablation, TaskBatch
from shadowlab.training import StepPlace, Telemetry, Trainee, build_trainee, build_unet, open_source
from shadowlab.views.trackers import open_views


@dataclass(frozen=True)
class _Opened:
    """What the loop works with. Its telemetry has to be closed."""

    batch: TaskBatch
    grid: FixedGrid
    ablations: list[Ablation]
    num_objects: int
    """That the samples show."""
    memorised: EncodedBatch
    trainee: Trainee
    telemetry: Telemetry


def run_overfit(session: Session) -> StageResult:
    """Train on `overfit.num_samples` samples until one-step generation meets the task's criterion, by every input.

    Raises:
        UserError: the data cannot be read or holds too few samples.
        NonFiniteError: loss or gradients are not finite.
        StageFailedError: the gradient scaler skips forever, or a sample is not encoded as itself.
    """
    session.processes.require_single("overfit")
    opened = _open(session)
    settings, run, telemetry = session.config.overfit, session.run, opened.telemetry
    try:
        result, proofs, step = _loop(session, opened)
        picture = session.task.comparison_figure(opened.batch, result.prediction, settings.num_samples)
        save_picture(picture, run.samples / f"overfit-step-{step:08d}.png")
        telemetry.image("overfit/comparison", picture, step)
    finally:
        telemetry.close()
    return _conclude(result, proofs, step, session)


def _open(session: Session) -> _Opened:
    config, processes, reporter = session.config, session.processes, session.reporter
    task, settings = session.task, config.overfit
    POLICIES[config.precision].apply_to_backend(processes.device)  # before the VAE computes anything
    reporter.say(f"overfit: opening {config.data.path}, building the model ...", style="dim")
    dataset = task.open_data()
    for notice in dataset.notices:
        reporter.warn(notice)
    if len(dataset) < settings.num_samples:
        raise UserError(f"{config.data.path}: has {len(dataset)} samples; --samples {settings.num_samples} is too many")
    chosen = samples_to_memorise(dataset, settings.num_samples, config.seed)
    batch = task.collate([dataset[i] for i in chosen])

    task.load_vae(processes.device)
    grid = FixedGrid(
        task,
        batch,
        timesteps=config.validation.timesteps,
        num_noises=config.validation.num_noises,
        seed=config.seed,
        chunk=settings.batch_size,
    )
    stranger = first_stranger(task, dataset, chosen, grid.encoded, "the batch")
    memorised = grid.encoded
    if config.data.latents is not None:  # what train will read, judged on the grid's own latents
        source = open_source(config, dataset, task, chosen)
        for notice in source.notices:
            reporter.warn(notice)
        memorised = source.read(chosen)
        stranger = stranger or first_stranger(task, dataset, chosen, memorised, f"data.latents {config.data.latents}")
    if stranger is not None:
        raise StageFailedError(f"overfit failed: {stranger}")
    trainee, telemetry = _build(session)
    num_parameters = sum(p.numel() for p in trainee.unet.parameters())
    telemetry.write_header(
        num_samples=settings.num_samples,
        num_parameters=num_parameters,
        charts=task.charts,
        metrics=task.metrics,
        start=began_with(config),
    )
    reporter.say(
        f"overfit: {settings.num_samples} sample{'s' if settings.num_samples > 1 else ''} of {dataset.name}, "
        f"{num_parameters:,} parameters, {config.precision}, until {task.criterion.text()}"
    )
    num_objects = len({dataset.object_ids[i] for i in chosen})
    return _Opened(batch, grid, inputs_of(grid), num_objects, memorised, trainee, telemetry)


def _build(session: Session) -> tuple[Trainee, Telemetry]:
    config, run, processes, task = session.config, session.run, session.processes, session.task
    settings = config.overfit
    optimizer = OptimizerConfig(
        **config.optimizer.model_dump()
        | {"learning_rate": settings.learning_rate, "warmup_steps": settings.warmup_steps, "weight_decay": 0.0}
        | {"schedule": "cosine"}
    )
    unet = build_unet(config, task.spec, processes.device)
    trainee = build_trainee(config, unet, task.objective, processes, optimizer, settings.max_steps, ema_decay=None)
    return trainee, Telemetry(
        run,
        trainee,
        config.diagnostics,
        kind="overfit",
        warn=session.reporter.warn,
        open_sinks=lambda: open_views(config, run.path),
    )


def _loop(session: Session, opened: _Opened) -> tuple[GridResult, InputProofs, int]:
    """The last result, what it owes to each input, and the step it is of."""
    config, reporter, task = session.config, session.reporter, session.task
    settings, trainee, telemetry = config.overfit, opened.trainee, opened.telemetry
    size = settings.batch_size  # fewer samples come several times in a step, each time with other noise and t
    step = 0
    reporter.say("judging the untrained model on the fixed grid ...", style="dim")
    result, proofs = opened.grid.evaluate(trainee.unet, trainee.precision), InputProofs(())
    with reporter.start("overfit", settings.max_steps):
        for step in range(1, settings.max_steps + 1):
            first = (step - 1) * size
            rows = torch.tensor(sample_indices(first, size, settings.num_samples, config.seed))
            encoded = opened.memorised.select(rows).at_positions(torch.arange(first, first + size))
            outcome = telemetry.step([encoded], StepPlace(step - 1, first, size))
            judged = step % settings.evaluate_every == 0 or step == settings.max_steps
            if judged:
                result = opened.grid.evaluate(trainee.unet, trainee.precision)
                telemetry.write(evaluation("fixed_grid", step, result.numbers()))
            numbers = {"loss": outcome.loss, "grad norm": outcome.grad_norm, "grid loss": result.loss}
            numbers |= {metric.text: result.numbers()[metric.name] for metric, _ in task.criterion.bounds}
            reporter.advance(step, settings.max_steps, numbers, log=judged, live=telemetry.live)
            if judged and (task.criterion.met_by(result.numbers()) or step == settings.max_steps):
                proofs = _judge_inputs(opened, result, config.train.noise_share)
                if proofs.passed:
                    break
    return result, proofs, step


def _judge_inputs(opened: _Opened, result: GridResult, noise_share: float) -> InputProofs:
    trainee = opened.trainee
    return judge_inputs(
        opened.grid,
        result,
        opened.ablations,
        trainee.unet,
        trainee.precision,
        num_objects=opened.num_objects,
        noise_share=noise_share,
    )


def _conclude(result: GridResult, proofs: InputProofs, step: int, session: Session) -> StageResult:
    task, run, reporter = session.task, session.run, session.reporter
    numbers = result.numbers()
    met = task.criterion.met_by(numbers)
    reporter.say(
        f"fixed-grid loss {result.loss:.4f}; one-step generation: R^2 {result.r2:.3f}, {result.text(task)} "
        f"after {counted(step, 'step')}"
    )
    reporter.say(f"pictures ({task.comparison}): {run.samples}")
    if proofs.rows:
        reporter.say(f"inputs: {proofs.text()}")
    message = ""
    if met and not proofs.passed:
        message = (
            f"overfit failed: after {counted(step, 'step')} {task.criterion.text()} is met, but {proofs.message()}"
        )
    elif not met:
        message = (
            f"overfit failed: after {counted(step, 'step')} {task.criterion.missed_text(numbers)}. Look at: whether "
            "the loss still falls (raise --max-steps), gradient norms near zero or growing in TensorBoard (lower or "
            "raise --set overfit.learning_rate), layers without gradient (shadowlab check-forward), and the pictures "
            "(a blurred prediction: the conditions do not reach the model; a sharp wrong one: pairs are mixed up)"
        )
        if not proofs.passed:
            message += f"; and {proofs.message()}"
    criterion = {**task.criterion.to_json(), "num_samples": session.config.overfit.num_samples}
    summary = {"steps": step, "criterion": criterion, "inputs": proofs.to_json()}
    return StageResult("overfit", met and proofs.passed, summary | numbers, message)
