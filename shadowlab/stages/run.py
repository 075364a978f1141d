"""Running a stage: its processes, its folder, its log, its entry in stages.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagnostics import NonFiniteError
from diagnostics.records import Stage, append_record
from shadowlab.console import Reporter
from shadowlab.distributed import Processes
from shadowlab.errors import InterruptedRunError, StageFailedError, StageStoppedError, UserError
from shadowlab.extras import require_extras
from shadowlab.inference import starting_from
from shadowlab.interruption import signals
from shadowlab.models import POLICIES
from shadowlab.runs import RunFolder, default_name, last_step
from shadowlab.session import Session
from shadowlab.settings import Config, Request
from shadowlab.stages.result import StageResult
from shadowlab.standard_streams import outlived
from shadowlab.tasks import open_task
from shadowlab.views.tensorboard import Board

FAILURES = (StageFailedError, StageStoppedError, NonFiniteError)  # of the run; others are of its surroundings


def open_processes(config: Config, request: Request, resumed: RunFolder | None = None) -> tuple[Processes, Reporter]:
    """Processes and reporter of a stage; the first line says what runs. Both are to be closed.

    Args:
        resumed: the run that is continued, if one is.

    Raises:
        UserError: the device, or the precision on it, is impossible, or an extra is absent.
    """
    outlived()
    require_extras(config)
    processes = Processes(config.device, config.distributed)
    POLICIES[config.precision].apply_to_backend(processes.device)  # an impossible one fails before any work
    reporter = Reporter(as_json=request.as_json, active=processes.is_main, quiet=request.quiet)
    if resumed is not None:
        reporter.say(f"resuming {resumed.path} with its own config.yaml and the options given now")
    elif request.is_default:
        reporter.say("preset tiny: SDXL's topology in small, on a CPU, without network; the real model: --preset sdxl")
    if processes.device.type == "cpu" and config.precision != "fp32":
        reporter.warn(
            f"--precision {config.precision} on a CPU is several times slower than fp32; good for its numerics alone"
        )
    return processes, reporter


def run_stage(name: str, request: Request, stage: Callable[[Session], StageResult]) -> StageResult:
    """Run a stage of one process in a run folder of its own.

    Raises:
        UserError: wrong configuration, several processes, or a folder that has results; and as `finish_stage`. Where
            nothing was done, no folder is left.
        InterruptedRunError: a signal ended it in the middle.
    """
    config = request.config()
    task = open_task(config)  # an option that it does not have fails before any work
    starting = starting_from(config)
    keeps = None if starting is None else starting.keep
    processes, reporter = open_processes(config, request)
    run = None
    try:
        processes.require_single(name)
        if request.run is None:
            run = RunFolder.create_beside(config, default_name(request.label, name), source=request.label, keeps=keeps)
        else:
            run = RunFolder.create(config, request.run, source=request.label, keeps=keeps)
        if starting is not None:
            reporter.say(f"starting from {starting.start.text}")
            config = run.saved_config()
            task = open_task(config)
        with run.claim():
            return finish_stage(name, Session(config, run, processes, reporter, task), stage)
    except KeyboardInterrupt:
        reporter.close()
        if run is None or run.discard():
            raise
        other = "" if request.run is None else " under another --run"
        raise InterruptedRunError(
            f"interrupted: {name} keeps no checkpoint to go on from; start it again{other} (what it recorded stays in "
            f"{run.path})"
        ) from None
    except Exception:
        reporter.close()
        if run is not None:
            run.discard()  # a command that is refused leaves nothing
        raise
    finally:
        reporter.close()
        processes.close()


def finish_stage(
    name: str, session: Session, stage: Callable[[Session], StageResult], *, write: bool = True
) -> StageResult:
    """Run `stage` and record its result, a failure too: in stages.json, and as a record of kind `stage`.

    Args:
        write: False on every process but the first.

    Raises:
        StageFailedError: the stage did not pass; and whatever the stage raises.
        UserError: the disk refuses a file of the run, and nothing else was wrong.
    """
    config, run, reporter = session.config, session.run, session.reporter
    if write:
        reporter.log_to(run.log)
    signals.stop_if_asked()
    try:
        with signals.unmasked():
            result = stage(session)
    except InterruptedRunError:
        raise  # no failure: nothing is recorded
    except KeyboardInterrupt:
        if write:
            reporter.note(f"{name} interrupted: {signals.name or 'Ctrl-C'}")
        raise
    except OSError as error:  # data that cannot be read has errors of its own
        stopped = _refused(run, error)
        if write:
            reporter.note(f"{name} stopped: {stopped}")
        raise stopped from error
    except Exception as error:
        if write:
            reporter.note(f"{name} failed: {error}")
            if isinstance(error, FAILURES):
                step = error.verdict.step if isinstance(error, NonFiniteError) else None
                record_failure(name, str(error), config, run, reporter, step=0 if step is None else step + 1)
        raise
    if write and not result.idle:
        try:
            run.record_stage(name, passed=result.passed, config=config, summary=result.summary)
            step = result.summary.get("steps", 0)
            verdict = _verdict(name, result.message, passed=result.passed, step=step, summary=result.summary)
            _show(run, verdict, config)
        except OSError as error:
            stopped = _refused(run, error)
            if result.passed:
                reporter.note(f"{name} passed and is not recorded in full: {stopped}")
                raise stopped from error
            reporter.warn(f"the failure of {name} is not recorded in full: {stopped}")
    document = {"stage": name, "passed": result.passed, "run": str(run.path), **result.summary}
    if not result.passed:
        document["error"] = result.message
    reported = reporter.result(document)
    if not result.passed:
        reporter.note(f"{name} failed: {result.message}")
        failure = StageFailedError(result.message)
        failure.reported = reported  # one JSON document, not two
        raise failure
    reporter.conclude(f"{name}: {'nothing to do' if result.idle else 'passed'} ({run.path})", style="bold green")
    return result


def record_failure(name: str, message: str, config: Config, run: RunFolder, reporter: Reporter, step: int = 0) -> None:
    """In stages.json and among the records. A disk that refuses is a warning: what was found is reported as well."""
    try:
        run.record_stage(name, passed=False, config=config, summary={"error": message})
        _show(run, _verdict(name, message, passed=False, step=step), config)
    except OSError as error:
        reporter.warn(f"the failure of {name} is not recorded in full: {_refused(run, error)}")


def _refused(run: RunFolder, error: OSError) -> UserError:
    return UserError(
        f"{error.filename or run.path}: cannot be written ({error.strerror or error}); what was saved before stays: "
        "free the disk or make it writable, then go on"
    )


def _verdict(name: str, message: str, *, passed: bool, step: int, summary: dict[str, Any] | None = None) -> Stage:
    """step: done until then, as far as the stage says; the records may go further."""
    ended: Stage = {"kind": "stage", "step": step, "stage": name, "passed": passed, "message": message}
    ended["summary"] = summary or {}
    return ended


def _show(run: RunFolder, verdict: Stage, config: Config) -> None:
    """The verdict among the run's records and in TensorBoard.

    Raises:
        OSError: the disk refuses.
    """
    verdict["step"] = max(verdict["step"], _last_step(run.metrics))
    append_record(run.metrics, verdict)
    if "tensorboard" in config.tracking:
        board = Board(run.tensorboard, adds=True)
        board.write(verdict)
        board.close()


def _last_step(metrics: Path) -> int:
    """Of the records; 0 where they cannot be read: that is said elsewhere, here the stage's own result counts."""
    try:
        return last_step(metrics) if metrics.is_file() else 0
    except (OSError, ValueError):
        return 0
