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
from shadowlab.runs import RunFolder
from shadowlab.session import Session
from shadowlab.settings import Config
from shadowlab.stages.result import StageResult
from shadowlab.stages.train.setup import Opened, Start, open_training
from shadowlab.stages.train.validation import validate
from shadowlab.training import BatchSource, DataWait, Interruption, StepPlace, Trainee, save_checkpoint


def run_train(session: Session, *, resume: bool = False) -> StageResult:
    """Train to `train.max_steps`, with `resume` from the newest complete checkpoint of the run, if it came to one.

    The first SIGINT or SIGTERM ends the loop after the running step, on every process after the same one, and saves.

    Raises:
        UserError: data, weights or checkpoint cannot be read, or every checkpoint of the run is damaged.
        InterruptedRunError: SIGINT or SIGTERM; the message names the step that was saved.
        StageStoppedError: a sample cannot be read in the middle of the run; every process raises it.
        NonFiniteError: loss or gradients are not finite; the last checkpoint stays.
        StageFailedError: weights turned non-finite in a step, or validation is not finite.
    """
    opened = open_training(session, resume=resume)
    if isinstance(opened, Start):
        return StageResult("train", True, {"steps": opened.step, "nothing_to_do": True}, idle=True)
    try:
        first, last, step = _loop(session, opened)
    finally:
        opened.telemetry.close()
    return _conclude(opened.start.step, first, last, step, session.run, session.reporter)


def _loop(session: Session, opened: Opened) -> tuple[GridResult, GridResult, int]:
    """The first and the last validation, and the steps that are done."""
    config, run, processes, reporter = session.config, session.run, session.processes, session.reporter
    settings, trainee, telemetry = config.train, opened.trainee, opened.telemetry
    step, position = opened.start.step, opened.start.position
    data_wait = DataWait(config, reporter)
    first_result = result = validate(session, opened.grid, trainee, telemetry, step, write=opened.start.fresh)
    with (
        reporter.start("train", settings.max_steps, step),
        Interruption(speaks=processes.is_main, show=reporter.notice) as interruption,
    ):
        while step < settings.max_steps:
            started = time.perf_counter()
            processes.at("reading data")
            with processes.together():
                micro_batches = _read(opened.batches, settings.gradient_accumulation_steps, step)
            waited = time.perf_counter() - started  # until every process has its data
            processes.at("encoding")
            encoded = _encode(micro_batches, opened.source, config, processes, position)
            place = StepPlace(step, position, opened.global_batch)
            outcome = telemetry.step(encoded, place, waited_seconds=waited, began=started)
            data_wait.add(waited, time.perf_counter() - started)
            step, position = step + 1, position + opened.global_batch
            if step % settings.validate_every == 0 or step == settings.max_steps:
                result = validate(session, opened.grid, trainee, telemetry, step)
            stopping = step < settings.max_steps and processes.any_true(interruption.asked)
            if step % config.checkpoint.every_steps == 0 or step == settings.max_steps or stopping:
                _save(config, run, trainee, step, position, opened.identity)
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
