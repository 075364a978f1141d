"""overfit: can the model memorise a handful of samples? If not, a long training run is money burnt.

The training loss is a poor judge: with random t and noise it cannot reach zero. The samples are fixed and so is a
grid of (sample, t, noise) on which the model is judged, together with the shadows it generates in one step.
"""

import torch

from diagnostics.records import evaluation
from shadowlab.console import Reporter
from shadowlab.data import sample_indices
from shadowlab.distributed import Processes
from shadowlab.errors import UserError
from shadowlab.evaluation import FixedGrid, GridResult
from shadowlab.models import POLICIES, load_vae
from shadowlab.runs import RunFolder
from shadowlab.seeding import permutation
from shadowlab.settings import Config, OptimizerConfig
from shadowlab.stages.result import StageResult
from shadowlab.tasks import CHARTS, ShadowTask, collate, comparison_grid, open_dataset, save_picture
from shadowlab.training import StepPlace, Telemetry, Trainee, build_trainee, build_unet, open_source
from shadowlab.views.tensorboard import Board


def run_overfit(config: Config, run: RunFolder, processes: Processes, reporter: Reporter) -> StageResult:
    """Train on `overfit.num_samples` samples until one-step generation meets the criterion.

    Raises:
        UserError: the data cannot be read or holds too few samples.
        NonFiniteError: loss or gradients are not finite.
        StageFailedError: the gradient scaler skips for ever.
    """
    processes.require_single("overfit")
    settings = config.overfit
    POLICIES[config.precision].apply_to_backend(processes.device)  # before the VAE computes anything
    dataset = open_dataset(config.data.path, config.data.image_size)
    for notice in dataset.notices:
        reporter.warn(notice)
    if len(dataset) < settings.num_samples:
        raise UserError(f"{config.data.path}: has {len(dataset)} samples; --samples {settings.num_samples} is too many")
    chosen = sorted(permutation(len(dataset), config.seed, "overfit-samples")[: settings.num_samples].tolist())
    batch = collate([dataset[i] for i in chosen])

    task = ShadowTask(load_vae(config.model.vae_source, seed=config.seed).to(processes.device))
    grid = FixedGrid(
        task,
        batch,
        timesteps=config.validation.timesteps,
        num_noises=config.validation.num_noises,
        seed=config.seed,
        chunk=settings.batch_size,
    )
    memorised = grid.encoded
    if config.data.latents is not None:  # what train will read, judged on the grid's own latents
        source = open_source(config, dataset, task, chosen)
        for notice in source.notices:
            reporter.warn(notice)
        memorised = source.read(chosen)
    optimizer = OptimizerConfig(
        **config.optimizer.model_dump()
        | {"learning_rate": settings.learning_rate, "warmup_steps": settings.warmup_steps, "weight_decay": 0.0}
        | {"schedule": "cosine"}
    )
    unet = build_unet(config, task, processes.device)
    trainee = build_trainee(config, unet, processes, optimizer, settings.max_steps, ema_decay=None)
    telemetry = _telemetry(config, run, trainee, reporter)
    num_parameters = sum(p.numel() for p in unet.parameters())
    telemetry.write_header(num_samples=settings.num_samples, num_parameters=num_parameters, charts=CHARTS)
    reporter.say(
        f"overfit: {settings.num_samples} sample{'s' if settings.num_samples > 1 else ''} of {dataset.name}, "
        f"{num_parameters:,} parameters, {config.precision}, "
        f"until R^2 >= {settings.min_r2} and soft IoU >= {settings.min_soft_iou}"
    )
    size = settings.batch_size  # fewer samples come several times in a step, each time with other noise and t
    step = 0
    try:
        result = grid.evaluate(unet, trainee.precision)
        with reporter.start("overfit", settings.max_steps):
            for step in range(1, settings.max_steps + 1):
                first = (step - 1) * size
                rows = torch.tensor(sample_indices(first, size, settings.num_samples, config.seed))
                encoded = memorised.select(rows).at_positions(torch.arange(first, first + size))
                outcome = telemetry.step([encoded], StepPlace(step - 1, first, size))
                judged = step % settings.evaluate_every == 0 or step == settings.max_steps
                if judged:
                    result = grid.evaluate(unet, trainee.precision)
                    telemetry.write(evaluation("fixed_grid", step, result.numbers()))
                numbers = {"loss": outcome.loss, "grad norm": outcome.grad_norm, "grid loss": result.loss}
                numbers |= {"R^2": result.r2, "soft IoU": result.metrics["soft_iou"]}
                reporter.advance(step, settings.max_steps, numbers, log=judged, live=telemetry.live)
                if judged and _meets(result, config):
                    break
        picture = comparison_grid(batch, task.target(batch), result.prediction, max_rows=settings.num_samples)
        save_picture(picture, run.samples / f"overfit-step-{step:08d}.png")
        telemetry.image("overfit/comparison", picture, step)
    finally:
        telemetry.close()
    return _conclude(result, step, config, run, reporter)


def _telemetry(config: Config, run: RunFolder, trainee: Trainee, reporter: Reporter) -> Telemetry:
    return Telemetry(
        run,
        trainee,
        config.diagnostics,
        kind="overfit",
        warn=reporter.warn,
        open_sinks=lambda: [Board(run.tensorboard)],
    )


def _meets(result: GridResult, config: Config) -> bool:
    return result.r2 >= config.overfit.min_r2 and result.metrics["soft_iou"] >= config.overfit.min_soft_iou


def _conclude(result: GridResult, step: int, config: Config, run: RunFolder, reporter: Reporter) -> StageResult:
    passed = _meets(result, config)
    model, black = result.metrics, result.black_metrics
    reporter.say(
        f"fixed-grid loss {result.loss:.4f}; one-step generation: R^2 {result.r2:.3f}, "
        f"soft IoU {model['soft_iou']:.3f} (all black {black['soft_iou']:.3f}), "
        f"RMSE {model['rmse']:.4f} (all black {black['rmse']:.4f}) after {step} steps"
    )
    reporter.say(f"pictures (object / target / one step / error): {run.samples}")
    message = ""
    if not passed:
        message = (
            f"overfit failed: after {step} steps R^2 is {result.r2:.3f} (needs {config.overfit.min_r2}) and soft IoU "
            f"{model['soft_iou']:.3f} (needs {config.overfit.min_soft_iou}). Look at: whether the loss still falls "
            "(raise --set overfit.max_steps), gradient norms near zero or growing in TensorBoard (lower or raise "
            "--set overfit.learning_rate), layers without gradient (shadowlab check-forward), and the pictures "
            "(a blurred prediction: the conditions do not reach the model; a sharp wrong one: pairs are mixed up)"
        )
    settings = config.overfit
    criterion = {"r2": settings.min_r2, "soft_iou": settings.min_soft_iou, "num_samples": settings.num_samples}
    summary = {"steps": step, "criterion": criterion}
    return StageResult("overfit", passed, summary | result.numbers(), message)
