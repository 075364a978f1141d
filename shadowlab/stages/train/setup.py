"""Everything that a run trains with, opened in the order in which it can fail."""

import shutil
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from shadowlab.console import Reporter
from shadowlab.data import SampleSet, Split, endless_batches, split_by_object
from shadowlab.errors import UserError
from shadowlab.evaluation import FixedGrid
from shadowlab.models import POLICIES
from shadowlab.plain_text import counted
from shadowlab.runs import RunFolder, began_with, changes
from shadowlab.session import Session
from shadowlab.settings import Config
from shadowlab.stages.train.beginning import Stream, prove_checkpoints, prove_data
from shadowlab.stages.train.validation import is_due, validation_grid
from shadowlab.training import (
    BatchSource,
    Telemetry,
    Trainee,
    build_trainee,
    build_unet,
    checkpoint_folders,
    foreign_entries,
    learning_rate,
    load_checkpoint,
    newest_sound_checkpoint,
    open_source,
    remove_unfinished,
)
from shadowlab.views.trackers import open_views

_READING_SECONDS = 3600.0  # the other processes wait this long while the first one reads checkpoints
_SILENT_SECONDS = 600.0  # large files are read without giving other threads a turn
_OPENING_SECONDS = 1800.0


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    step: int
    """Optimizer steps done."""
    position: int
    """Samples drawn by all processes."""
    fresh: bool
    """Nothing was trained before."""
    judged: bool
    """The records hold the validation of this step, or want none."""


@dataclass(frozen=True)
class Opened:
    """What the loop works with. Its telemetry has to be closed."""

    grid: FixedGrid
    source: BatchSource
    batches: Generator[Any]
    """This process's micro-batches, forever; to be closed."""
    trainee: Trainee
    telemetry: Telemetry
    start: Start
    global_batch: int
    """Samples of all processes in a step."""
    identity: dict[str, Any]
    """What must be the same when the run is resumed."""
    stream: Stream


def open_training(session: Session, *, resume: bool, proves_checkpoints: bool = True) -> Opened | Start:
    """Data, model, checkpoint, records; the start alone where the run is complete already.

    Raises:
        UserError: data, weights or checkpoint cannot be read, or every checkpoint of the run is damaged.
    """
    config, run, processes, reporter = session.config, session.run, session.processes, session.reporter
    settings = config.train
    dataset, split, grid, source = _open_data(session)
    stream = Stream(dataset, split, config.seed)
    if proves_checkpoints:
        prove_checkpoints(session, grid)
    trainee = _build(session)
    global_batch = settings.batch_size * settings.gradient_accumulation_steps * processes.count
    identity = {"data": dataset.fingerprint(), "effective batch": global_batch, "model": config.model_hash()}
    start = _start(session, trainee, identity, resume=resume)
    if start.step >= settings.max_steps and _has_result(run, start.step):
        reporter.say(f"{run.path} is complete at step {start.step}; give a larger --max-steps to train on")
        return start
    with processes.together():
        prove_data(session, stream, grid, start.position)
    batches = endless_batches(
        source.dataset,
        split.train,
        collate=source.collate,
        seed=config.seed,
        first_position=start.position,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation_steps,
        rank=processes.rank,
        num_processes=processes.count,
        num_workers=config.data.num_workers,
        read=source.augmented,
    )
    with processes.together():
        telemetry = _telemetry(config, run, trainee, reporter, resumed_at=-1 if start.fresh else start.step)
    recorded = processes.share("validation" in telemetry.recorded)
    start = replace(start, judged=not start.fresh and (recorded or not is_due(settings, start.step)))
    num_parameters = sum(p.numel() for p in trainee.unet.parameters())
    takes_over = resume and processes.is_main
    telemetry.write_header(
        num_samples=len(split.train),
        num_parameters=num_parameters,
        charts=session.task.charts,
        metrics=session.task.metrics,
        changed=changes(run.saved_config(), config) if takes_over else (),
        augmentation=config.data.augment.text,
        split=stream.described(),
        start=began_with(config),
    )
    if takes_over:
        _take_over(run, config, start.step, reporter)
    reporter.say(
        f"train: {counted(len(split.train), 'sample')} ({len(split.validation)} held out), {_parameters(trainee)}, "
        f"{config.precision}{' (TF32 off)' if config.precision == 'fp32' else ''}, effective batch {global_batch} = "
        f"{settings.batch_size} x {settings.gradient_accumulation_steps} x {processes.count}, "
        f"steps {start.step} to {settings.max_steps}{'' if config.data.latents is None else ', no VAE in the step'}"
        f"{f', augmented: {config.data.augment.text}' if config.data.augment.is_on else ''}"
    )
    return Opened(grid, source, batches, trainee, telemetry, start, global_batch, identity, stream)


def _has_result(run: RunFolder, step: int) -> bool:
    """Whether the stage passed at this step. A process that was killed in the last validation left none."""
    result = run.stages().get("train")
    return result is not None and result["passed"] is True and result["summary"].get("steps") == step


def _take_over(run: RunFolder, config: Config, step: int, reporter: Reporter) -> None:
    """Say what is configured otherwise than before, and keep it for the next resume."""
    before = run.saved_config()
    for change in changes(before, config):
        reporter.say(f"changed on resume: {change}")
    rates = [learning_rate(one.optimizer, step, one.train.max_steps) for one in (before, config)]
    if rates[0] != rates[1]:
        reporter.say(f"the learning rate of step {step + 1} is {rates[1]:.3g}; it would have been {rates[0]:.3g}")
    run.save_config(config)


def _open_data(session: Session) -> tuple[SampleSet[Any], Split, FixedGrid, BatchSource]:
    """Split by object; a fixed grid of held-out samples; what the step reads."""
    config, processes, reporter, task = session.config, session.processes, session.reporter, session.task
    POLICIES[config.precision].apply_to_backend(processes.device)  # before the VAE computes anything
    processes.at("opening the data", patience_seconds=_OPENING_SECONDS)
    with processes.together():
        first = task.open_data() if processes.is_first_here else None
    with processes.together():
        # A large set's index is kept by now: the others need not read all names and metadata, too.
        dataset = task.open_data() if first is None else first
        for notice in dataset.notices:
            reporter.warn(notice)
        held_out = getattr(dataset, "held_out", None)
        split = split_by_object(dataset.object_ids, config.data.validation_fraction, config.seed, held_out)
        task.load_vae(processes.device)
        grid = validation_grid(session, dataset, split)
        source = open_source(config, dataset, task, split.train, augmented=True)
        for notice in source.notices:
            reporter.warn(notice)
    return dataset, split, grid, source


def _build(session: Session) -> Trainee:
    """Model and optimizer; conv_in is widened before the optimizer sees it."""
    config, processes, task, settings = session.config, session.processes, session.task, session.config.train
    processes.at("building the model", patience_seconds=_OPENING_SECONDS, silence_seconds=_SILENT_SECONDS)
    unet = build_unet(config, task.spec, processes.device)
    trainee = build_trainee(
        config, unet, task.objective, processes, config.optimizer, settings.max_steps, ema_decay=settings.ema_decay
    )
    _warn_of_space(session.run, trainee, session.reporter)
    return trainee


def _start(session: Session, trainee: Trainee, identity: dict[str, Any], *, resume: bool) -> Start:
    run = session.run
    fresh = not resume or not checkpoint_folders(run.checkpoints)  # a resumed run, too, may have come to nothing
    if resume and fresh:
        session.reporter.say(f"{run.path} has no checkpoint yet: it starts from the beginning")
    step, position = (0, 0) if fresh else _restore(run, trainee, identity, session.reporter)
    return Start(step, position, fresh, judged=not fresh)


def _parameters(trainee: Trainee) -> str:
    """How many there are, and how many of them train, for people."""
    trained = sum(parameter.numel() for parameter in trainee.parameters().values())
    whole = sum(parameter.numel() for parameter in trainee.unet.parameters())
    some = "" if trained == whole else f" ({trained:,} train in {len(trainee.parameters())} tensors)"
    return f"{whole:,} parameters{some}"


def _warn_of_space(run: RunFolder, trainee: Trainee, reporter: Reporter) -> None:
    """Before hours of training, not at the first checkpoint: weights and EMA of all, two moments of what trains."""
    copies = 1 if trainee.ema is None else 2
    needed = sum(
        parameter.numel() * parameter.element_size() * (copies + (2 if parameter.requires_grad else 0))
        for parameter in trainee.unet.parameters()
    )
    free = shutil.disk_usage(run.path).free
    if free < needed:
        reporter.warn(
            f"{run.path}: a checkpoint takes {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free; make room "
            "or choose another --set output_dir=DIR"
        )


def _restore(run: RunFolder, trainee: Trainee, identity: dict[str, Any], reporter: Reporter) -> tuple[int, int]:
    processes = trainee.processes
    processes.at("reading the checkpoint", patience_seconds=_READING_SECONDS, silence_seconds=_SILENT_SECONDS)
    checkpoint = None
    if processes.is_main:
        for path in remove_unfinished(run.checkpoints):
            reporter.say(f"removed {path}: a process was ended while it wrote this")
        foreign = [name for name in foreign_entries(run.checkpoints) if name.startswith("step-")]
        if foreign:
            reporter.say(f"{run.checkpoints}: {', '.join(foreign[:5])}: no checkpoint of this run, left alone")
        checkpoint = newest_sound_checkpoint(run.checkpoints, reporter.warn)
    checkpoint = processes.share(checkpoint)
    if checkpoint is None:
        raise _on_all(f"{run.path}: has no complete checkpoint to resume from; start it again under another --run")
    try:
        state = load_checkpoint(checkpoint, trainee, identity=identity)
    except UserError as error:
        error.shared = processes.count > 1  # every process reads the same files
        raise
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
            open_sinks=lambda: open_views(config, run.path, resumed_at=resumed_at),
        )
    except (OSError, ValueError) as error:  # ValueError: a damaged line of metrics.jsonl; it names file and line
        raise UserError(" ".join(str(error).split())) from error
