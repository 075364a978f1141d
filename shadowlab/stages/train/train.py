"""train: the run itself. One readable loop; what a step is stands in shadowlab/training/step.py."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from shadowlab.console import Reporter
from shadowlab.data import micro_batch_positions
from shadowlab.distributed import Processes
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import InterruptedRunError, StageStoppedError, UserError
from shadowlab.evaluation import GridResult
from shadowlab.interruption import signals
from shadowlab.runs import RunFolder, best_step
from shadowlab.session import Session
from shadowlab.settings import CheckpointConfig, Config
from shadowlab.stages.result import StageResult
from shadowlab.stages.train.setup import Opened, Start, open_training
from shadowlab.stages.train.validation import is_due, validate
from shadowlab.training import (
    BatchSource,
    DataWait,
    StepPlace,
    Trainee,
    complete_checkpoints,
    drop_old,
    save_checkpoint,
    step_of,
)


def run_train(session: Session, *, resume: bool = False, proves_checkpoints: bool = True) -> StageResult:
    """Train to `train.max_steps`, with `resume` from the newest complete checkpoint of the run, if it came to one.

    The first SIGINT or SIGTERM ends the loop after the running step, on every process after the same one, and saves.
    A checkpoint is written before the validation of its step; a resume makes up for a validation that did not happen.
    proves_checkpoints: let a stand-in's checkpoint make its round trip first, about a second.

    Raises:
        UserError: data, weights or checkpoint cannot be read, or every checkpoint of the run is damaged.
        InterruptedRunError: SIGINT or SIGTERM; the message names the step that was saved.
        StageStoppedError: a sample cannot be read in the middle of the run; every process raises it.
        NonFiniteError: loss or gradients are not finite; the last checkpoint stays.
        StageFailedError: weights turned non-finite in a step, or validation is not finite.
    """
    opened = open_training(session, resume=resume, proves_checkpoints=proves_checkpoints)
    if isinstance(opened, Start):
        return StageResult("train", True, {"steps": opened.step, "nothing_to_do": True}, idle=True)
    try:
        first, last, step = _loop(session, opened)
    finally:
        opened.telemetry.close()
        opened.batches.close()
    return _conclude(opened.start.step, first, last, step, session.run, session.reporter)


def _loop(session: Session, opened: Opened) -> tuple[GridResult, GridResult, int]:
    """The first and the last validation, and the steps that are done."""
    config, run, processes, reporter = session.config, session.run, session.processes, session.reporter
    settings, trainee, telemetry = config.train, opened.trainee, opened.telemetry
    step, position = opened.start.step, opened.start.position
    data_wait = DataWait(config, reporter)
    first_result = result = validate(session, opened.grid, trainee, telemetry, step, write=not opened.start.judged)
    if processes.any_true(signals.asked):
        raise KeyboardInterrupt
    with (
        reporter.start("train", settings.max_steps, step),
        signals.after_step(speaks=processes.is_main, several=processes.count > 1, show=reporter.notice),
    ):
        while step < settings.max_steps:
            started = time.perf_counter()
            processes.at("reading data")
            with processes.together():
                micro_batches = _read(opened.batches, settings.gradient_accumulation_steps, step)
                opened.stream.check(micro_batches, config.train, processes, position)
            waited = time.perf_counter() - started  # until every process has its data
            processes.at("encoding")
            encoded = _encode(micro_batches, opened.source, config, processes, position)
            place = StepPlace(step, position, opened.global_batch)
            outcome = telemetry.step(encoded, place, waited_seconds=waited, began=started)
            data_wait.add(waited, time.perf_counter() - started)
            step, position = step + 1, position + opened.global_batch
            is_last = step == settings.max_steps
            stopping = not is_last and _stops(processes, reporter, step)
            saving = stopping or is_last or step % config.checkpoint.every_steps == 0
            if saving:  # before the validation, which may fail or be killed
                _save(run, trainee, step, position, opened.identity)
            if is_due(settings, step) and not stopping:  # a resume makes up for it
                result = validate(session, opened.grid, trainee, telemetry, step)
                stopping = not is_last and _stops(processes, reporter, step)
                if stopping and not saving:
                    saving = True
                    _save(run, trainee, step, position, opened.identity)
            if saving and processes.is_main:  # after it: the last ones that were judged well stay until then
                _drop_old(run, step, config.checkpoint)
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
    return first_result, result, step


def _stops(processes: Processes, reporter: Reporter, step: int) -> bool:
    """Whether a signal asked some process to stop; that it was heard stands in log.txt."""
    stopping = processes.any_true(signals.asked)
    if stopping:
        reporter.note(f"{signals.name or 'asked through another process'}: step {step} is finished, and saved next")
    return stopping


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


def _drop_old(run: RunFolder, step: int, config: CheckpointConfig) -> None:
    """Of the older checkpoints that which validation judged best stays."""
    best = None
    if config.keep_best:
        there = {step_of(path) or 0 for path in complete_checkpoints(run.checkpoints)}
        found = best_step(run.metrics, there)
        best = None if found is None else found.step
    drop_old(run.checkpoints, step, config.keep_last, config.keep_every, best)


def _save(run: RunFolder, trainee: Trainee, step: int, position: int, identity: dict[str, Any]) -> None:
    save_checkpoint(run.checkpoints, trainee, step=step, position=position, identity=identity)


def _conclude(
    begun_at: int, first: GridResult, last: GridResult, step: int, run: RunFolder, reporter: Reporter
) -> StageResult:
    fell = last.loss < first.loss
    went_on = step > begun_at  # else all steps were done, and only the last validation or the verdict was missing
    reporter.say(
        f"validation loss {first.loss:.4f} at step {begun_at} -> {last.loss:.4f} at step {step}; checkpoints in "
        f"{run.checkpoints}"
    )
    if went_on and not fell:
        reporter.warn("the validation loss did not fall; look at the gradient norms in TensorBoard")
    summary = {
        "steps": step,
        "first_step": begun_at,  # of this part, where the run was resumed
        "first_validation_loss": first.loss,
    }
    summary |= {"validation_loss_fell": fell} if went_on else {}
    return StageResult("train", True, summary | last.numbers())
