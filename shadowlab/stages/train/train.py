"""train: the run itself. One readable loop; what a step is stands in shadowlab/training/step.py."""

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diagnostics.records import evaluation
from shadowlab.console import Reporter
from shadowlab.data import Split, endless_batches, micro_batch_positions, split_by_object
from shadowlab.distributed import Processes
from shadowlab.errors import InterruptedRunError, StageFailedError, StageStoppedError, UserError
from shadowlab.evaluation import FixedGrid, GridResult
from shadowlab.models import POLICIES, load_vae
from shadowlab.runs import RunFolder, changes
from shadowlab.settings import Config
from shadowlab.stages.result import StageResult
from shadowlab.tasks import (
    CHARTS,
    EncodedBatch,
    ShadowDataset,
    ShadowTask,
    Task,
    collate,
    comparison_grid,
    open_dataset,
    save_picture,
    sweep_grid,
)
from shadowlab.training import (
    BatchSource,
    DataWait,
    Interruption,
    StepPlace,
    Telemetry,
    Trainee,
    build_trainee,
    build_unet,
    load_checkpoint,
    newest_sound_checkpoint,
    open_source,
    remove_unfinished,
    save_checkpoint,
)
from shadowlab.views.tensorboard import Board

_READING_SECONDS = 3600.0  # the other processes wait this long while the first one reads checkpoints
_SILENT_SECONDS = 600.0  # large files are read without giving other threads a turn
_OPENING_SECONDS = 1800.0


def run_train(
    config: Config, run: RunFolder, processes: Processes, reporter: Reporter, *, resume: bool = False
) -> StageResult:
    """Train to `train.max_steps`, with `resume` from the newest complete checkpoint of `run`, if it came to one.

    The first SIGINT or SIGTERM ends the loop after the running step, on every process after the same one, and saves.

    Raises:
        UserError: data, weights or checkpoint cannot be read, or every checkpoint of `run` is damaged.
        InterruptedRunError: SIGINT or SIGTERM; the message names the step that was saved.
        StageStoppedError: a sample cannot be read in the middle of the run; every process raises it.
        NonFiniteError: loss or gradients are not finite; the last checkpoint stays.
        StageFailedError: weights turned non-finite in a step, or validation is not finite.
    """
    # 1. Data: split by object, and a fixed grid of held-out samples.
    settings = config.train
    POLICIES[config.precision].apply_to_backend(processes.device)  # before the VAE computes anything
    processes.at("opening the data", patience_seconds=_OPENING_SECONDS)
    with processes.together():
        dataset = open_dataset(config.data.path, config.data.image_size)
        for notice in dataset.notices:
            reporter.warn(notice)
        split = split_by_object(dataset.object_ids, config.data.validation_fraction, config.seed)
        task = ShadowTask(load_vae(config.model.vae_source, seed=config.seed).to(processes.device))
        grid = _validation_grid(config, task, dataset, split)
        source = open_source(config, dataset, task, split.train)
        for notice in source.notices:
            reporter.warn(notice)

    # 2. Model and optimizer; conv_in is widened before the optimizer sees it.
    processes.at("building the model", patience_seconds=_OPENING_SECONDS, silence_seconds=_SILENT_SECONDS)
    unet = build_unet(config, task, processes.device)
    trainee = build_trainee(config, unet, processes, config.optimizer, settings.max_steps, ema_decay=settings.ema_decay)

    _warn_of_space(run, trainee, reporter)

    # 3. Where to begin.
    global_batch = settings.batch_size * settings.gradient_accumulation_steps * processes.count
    identity = {"data": dataset.fingerprint(), "effective batch": global_batch, "model": config.model_hash()}
    fresh = not resume or not any(run.checkpoints.glob("step-*"))  # a resumed run, too, may have come to nothing
    if resume and fresh:
        reporter.say(f"{run.path} has no checkpoint yet: it starts from the beginning")
    step, position = (0, 0) if fresh else _restore(run, trainee, identity, reporter)
    begun_at = step
    if step >= settings.max_steps:
        reporter.say(f"{run.path} is complete at step {step}; give a larger --max-steps to train on")
        return StageResult("train", True, {"steps": step, "nothing_to_do": True}, idle=True)
    batches = endless_batches(
        source.dataset,
        split.train,
        collate=source.collate,
        seed=config.seed,
        first_position=position,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation_steps,
        rank=processes.rank,
        num_processes=processes.count,
        num_workers=config.data.num_workers,
    )
    with processes.together():
        telemetry = _telemetry(config, run, trainee, reporter, resumed_at=-1 if fresh else step)
    num_parameters = sum(p.numel() for p in unet.parameters())
    telemetry.write_header(num_samples=len(split.train), num_parameters=num_parameters, charts=CHARTS)
    if resume and processes.is_main:
        for change in changes(run.saved_config(), config):
            reporter.say(f"changed on resume: {change}")
        run.save_config(config)
    reporter.say(
        f"train: {len(split.train)} samples ({len(split.validation)} held out), {num_parameters:,} parameters, "
        f"{config.precision}{' (TF32 off)' if config.precision == 'fp32' else ''}, effective batch {global_batch} = "
        f"{settings.batch_size} x {settings.gradient_accumulation_steps} x {processes.count}, "
        f"steps {step} to {settings.max_steps}{'' if config.data.latents is None else ', no VAE in the step'}"
    )

    # 4. The loop.
    try:
        data_wait, sweeps = DataWait(config, reporter), config.validation.light_sweep
        first_result = result = _validate(grid, trainee, telemetry, reporter, run, step, sweeps=sweeps, write=fresh)
        with (
            reporter.start("train", settings.max_steps, step),
            Interruption(speaks=processes.is_main, show=reporter.notice) as interruption,
        ):
            while step < settings.max_steps:
                started = time.perf_counter()
                processes.at("reading data")
                with processes.together():
                    micro_batches = _read(batches, settings.gradient_accumulation_steps, step)
                waited = time.perf_counter() - started  # until every process has its data
                processes.at("encoding")
                encoded = _encode(micro_batches, source, config, processes, position)
                place = StepPlace(step, position, global_batch)
                outcome = telemetry.step(encoded, place, waited_seconds=waited, began=started)
                data_wait.add(waited, time.perf_counter() - started)
                step, position = step + 1, position + global_batch
                if step % settings.validate_every == 0 or step == settings.max_steps:
                    result = _validate(grid, trainee, telemetry, reporter, run, step, sweeps=sweeps)
                stopping = step < settings.max_steps and processes.any_true(interruption.asked)
                if step % config.checkpoint.every_steps == 0 or step == settings.max_steps or stopping:
                    _save(config, run, trainee, step, position, identity)
                numbers: dict[str, float | str] = {"loss": outcome.loss, "grad norm": outcome.grad_norm}
                numbers |= {"lr": outcome.learning_rate, "data wait": data_wait.text}
                if trainee.watch.num_skipped:
                    numbers["skipped"] = trainee.watch.num_skipped
                logged = step % settings.log_every == 0
                reporter.advance(step, settings.max_steps, numbers, log=logged, live=telemetry.live)
                if logged:
                    data_wait.end_window()
                if stopping:
                    raise InterruptedRunError(f"interrupted after step {step}: saved", saved=True)
    finally:
        telemetry.close()
    return _conclude(begun_at, first_result, result, step, run, reporter)


def _warn_of_space(run: RunFolder, trainee: Trainee, reporter: Reporter) -> None:
    """Before hours of training, not at the first checkpoint: weights, two moments, and the EMA."""
    copies = 3 if trainee.ema is None else 4
    needed = copies * sum(parameter.numel() * parameter.element_size() for parameter in trainee.unet.parameters())
    free = shutil.disk_usage(run.path).free
    if free < needed:
        reporter.warn(
            f"{run.path}: a checkpoint takes {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free; make room "
            "or choose another --set output_dir=DIR"
        )


def _validation_grid(config: Config, task: Task, dataset: ShadowDataset, split: Split) -> FixedGrid:
    # Every n-th held-out sample: consecutive ones show the same object.
    wanted = min(config.validation.num_samples, len(split.validation))
    chosen = [split.validation[i * len(split.validation) // wanted] for i in range(wanted)]
    return FixedGrid(
        task,
        collate([dataset[i] for i in chosen]),
        timesteps=config.validation.timesteps,
        num_noises=config.validation.num_noises,
        seed=config.seed,
        chunk=config.train.batch_size,
    )


def _restore(run: RunFolder, trainee: Trainee, identity: dict[str, Any], reporter: Reporter) -> tuple[int, int]:
    processes = trainee.processes
    processes.at("reading the checkpoint", patience_seconds=_READING_SECONDS, silence_seconds=_SILENT_SECONDS)
    checkpoint = None
    if processes.is_main:
        for path in remove_unfinished(run.checkpoints):
            reporter.say(f"removed {path}: a process was ended while it wrote this")
        checkpoint = newest_sound_checkpoint(run.checkpoints, reporter.warn)
    checkpoint = processes.share(checkpoint)
    if checkpoint is None:
        raise _on_all(f"{run.path}: has no complete checkpoint to resume from; start it again under another --run")
    state = load_checkpoint(checkpoint, trainee)
    saved = state.get("identity", {})
    for name, value in identity.items():
        if saved.get(name) != value:
            raise _on_all(
                f"--resume: {name} was {saved.get(name, 'not noted')} in {checkpoint} and is {value} now; take "
                "the change back (effective batch = train.batch_size x train.gradient_accumulation_steps x processes), "
                "or start anew with another --run"
            )
    return state["step"], state["position"]


def _on_all(text: str) -> UserError:
    """An error that every process raises, from what all of them know."""
    error = UserError(text)
    error.shared = True
    return error


def _telemetry(config: Config, run: RunFolder, trainee: Trainee, reporter: Reporter, *, resumed_at: int) -> Telemetry:
    try:
        return Telemetry(
            run,
            trainee,
            config.diagnostics,
            kind="train",
            resumed_at=resumed_at,
            warn=reporter.warn,
            open_sinks=lambda: [Board(run.tensorboard, resumed_at=resumed_at)],
        )
    except (OSError, ValueError) as error:  # ValueError: a damaged line of metrics.jsonl; it names file and line
        raise UserError(" ".join(str(error).split())) from error


def _read(batches: Iterator[Any], count: int, step: int) -> list[Any]:
    """The micro-batches of the 0-based step."""
    try:
        return [next(batches) for _ in range(count)]
    except UserError as error:
        raise StageStoppedError(f"step {step + 1}: {error}") from error


def _encode(
    batches: Sequence[Any], source: BatchSource, config: Config, processes: Processes, position: int
) -> list[EncodedBatch]:
    settings = config.train
    places = micro_batch_positions(
        position, settings.batch_size, settings.gradient_accumulation_steps, processes.rank, processes.count
    )
    return [source.encode(batch, torch.tensor(p)) for batch, p in zip(batches, places, strict=True)]


def _validate(
    grid: FixedGrid,
    trainee: Trainee,
    telemetry: Telemetry,
    reporter: Reporter,
    run: RunFolder,
    step: int,
    *,
    sweeps: bool,
    write: bool = True,
) -> GridResult:
    """Judge the averaged weights (the raw ones where there is no EMA). Every rank does: no rank waits for another.

    sweeps: also draw the light sweep. write: False right after a resume, where the run has this step's record already.

    Raises:
        StageFailedError: a loss or a prediction is not finite.
    """
    trainee.processes.at("validation")
    with trainee.averaged_weights():
        result = grid.evaluate(trainee.unet, trainee.precision, trainee.processes)
        sweep = grid.light_sweep(trainee.unet, trainee.precision) if write and sweeps else None
    if write:
        telemetry.write(evaluation("validation", step, result.numbers()))
    _require_finite(result, sweep or {}, grid.batch.ids, step)
    if write and trainee.processes.is_main:
        target = grid.task.target(grid.batch)
        picture = comparison_grid(grid.batch, target, result.prediction)
        save_picture(picture, run.samples / f"step-{step:08d}.png")
        telemetry.image("validation/comparison", picture, step)
        if sweep is not None:
            picture = sweep_grid(grid.batch.object_image[0], sweep)
            save_picture(picture, run.samples / f"light-sweep-step-{step:08d}.png")
            telemetry.image("validation/light_sweep", picture, step)
    reporter.say(
        f"step {step}  validation loss {result.loss:.4f}  R^2 {result.r2:.3f}  "
        f"soft IoU {result.metrics['soft_iou']:.3f}  RMSE {result.metrics['rmse']:.4f} "
        f"(all black {result.black_metrics['rmse']:.4f})"
    )
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
            f"the shadow for {name} = {value:g} is not finite" for value, one in row if not bool(one.isfinite().all())
        ]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise StageFailedError(
            f"validation at step {step}: {bad[0]}{more}; the weights judged are the EMA's where there is one: look at "
            "the largest activations in TensorBoard, lower optimizer.learning_rate, or go on from the last checkpoint "
            "with --precision fp32 under another --run"
        )


def _save(config: Config, run: RunFolder, trainee: Trainee, step: int, position: int, identity: dict[str, Any]) -> None:
    save_checkpoint(
        run.checkpoints,
        trainee,
        step=step,
        position=position,
        identity=identity,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
    )


def _conclude(
    begun_at: int, first: GridResult, last: GridResult, step: int, run: RunFolder, reporter: Reporter
) -> StageResult:
    fell = last.loss < first.loss
    reporter.say(
        f"validation loss {first.loss:.4f} at step {begun_at} -> {last.loss:.4f} at step {step}; checkpoints in "
        f"{run.checkpoints}"
    )
    if not fell:
        reporter.warn("the validation loss did not fall; look at the gradient norms in TensorBoard")
    summary = {
        "steps": step,
        "first_step": begun_at,  # of this part, where the run was resumed
        "first_validation_loss": first.loss,
        "validation_loss_fell": fell,
    }
    return StageResult("train", True, summary | last.numbers())
