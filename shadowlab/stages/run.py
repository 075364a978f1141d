"""Running a stage: its folder, its log, its entry in stages.json; and what `train` wants proved beforehand."""

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from diagnostics import NonFiniteError
from diagnostics.records import Stage, append_record, read_records
from shadowlab.console import Reporter
from shadowlab.errors import InterruptedRunError, StageFailedError, StageStoppedError, UserError
from shadowlab.runs import RunFolder, stage_passed
from shadowlab.session import Session
from shadowlab.settings import Config
from shadowlab.stages.check_forward import run_check_forward
from shadowlab.stages.overfit import run_overfit
from shadowlab.stages.result import StageResult
from shadowlab.views.tensorboard import Board

REQUIRED_STAGES: dict[str, Callable[[Session], StageResult]] = {
    "check-forward": run_check_forward,
    "overfit": run_overfit,
}
_FAILURES = (StageFailedError, StageStoppedError, NonFiniteError)  # of the run; others are of its surroundings
_POLL_SECONDS = 1.0
_PROOF_SECONDS = 7 * 24 * 3600.0  # overfit may take days


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
    try:
        result = stage(session)
    except InterruptedRunError:
        raise  # no failure: nothing is recorded
    except OSError as error:  # data that cannot be read has errors of its own
        stopped = _refused(run, error)
        if write:
            reporter.note(f"{name} stopped: {stopped}")
        raise stopped from error
    except Exception as error:
        if write:
            reporter.note(f"{name} failed: {error}")
            if isinstance(error, _FAILURES):
                step = error.verdict.step if isinstance(error, NonFiniteError) else None
                _record_failure(name, str(error), config, run, reporter, step=0 if step is None else step + 1)
        raise
    if write and not result.idle:
        try:
            run.record_stage(name, passed=result.passed, config=config, summary=result.summary)
            step = result.summary.get("steps", 0)
            _show(run, name, passed=result.passed, step=step, message=result.message, summary=result.summary)
        except OSError as error:
            stopped = _refused(run, error)
            if result.passed:
                reporter.note(f"{name} passed and is not recorded in full: {stopped}")
                raise stopped from error
            reporter.warn(f"the failure of {name} is not recorded in full: {stopped}")
    document = {"stage": name, "passed": result.passed, "run": str(run.path), **result.summary}
    if not result.passed:
        document["error"] = result.message
    told = reporter.result(document)
    if not result.passed:
        reporter.note(f"{name} failed: {result.message}")
        failure = StageFailedError(result.message)
        failure.reported = told  # one JSON document, not two
        raise failure
    reporter.conclude(f"{name}: {'nothing to do' if result.idle else 'passed'} ({run.path})", style="bold green")
    return result


def _record_failure(name: str, message: str, config: Config, run: RunFolder, reporter: Reporter, step: int = 0) -> None:
    """The disk's trouble does not take the place of what was found."""
    try:
        run.record_stage(name, passed=False, config=config, summary={"error": message})
        _show(run, name, passed=False, step=step, message=message)
    except OSError as error:
        reporter.warn(f"the failure of {name} is not recorded in full: {_refused(run, error)}")


def _refused(run: RunFolder, error: OSError) -> UserError:
    return UserError(
        f"{error.filename or run.path}: cannot be written ({error.strerror or error}); what was saved before stays: "
        "free the disk or make it writable, then go on"
    )


def _show(
    run: RunFolder, name: str, *, passed: bool, step: int, message: str, summary: dict[str, Any] | None = None
) -> None:
    """The verdict among the run's records and in TensorBoard.

    step: done until then, as far as the stage says; the records may go further.

    Raises:
        OSError: the disk refuses.
    """
    step = max(step, _last_step(run.metrics))
    record: Stage = {
        "kind": "stage",
        "step": step,
        "stage": name,
        "passed": passed,
        "message": message,
        "summary": summary or {},
    }
    append_record(run.metrics, record)
    board = Board(run.tensorboard)
    board.write(record)
    board.close()


def _last_step(metrics: Path) -> int:
    """The largest of the records, up to a damaged one; 0 where there is none."""
    last = 0
    try:
        for record in read_records(metrics) if metrics.is_file() else ():
            step = record.get("step")
            last = max(last, step) if isinstance(step, int) else last
    except ValueError:  # whoever reads the records is told; here the stage's own result is what counts
        pass
    return last


def prove_required_stages(session: Session, *, skip: bool) -> None:
    """See that check-forward and overfit passed for this model configuration; run those that are missing.

    Each missing stage runs on the first process, in a folder of its own beside `run`; the other processes wait for
    its entry in a file, outside any collective, so that no timeout can strike.

    Raises:
        StageFailedError: a stage fails; training does not begin.
    """
    run, processes, reporter = session.run, session.processes, session.reporter
    if skip:
        reporter.warn(f"--skip-stages: {' and '.join(REQUIRED_STAGES)} are not asked for; nothing proves this model")
        return
    marker = run.path / "required-stages.json"
    if processes.is_main:
        marker.unlink(missing_ok=True)  # a resumed run's old one would send the others ahead
    processes.wait()
    processes.at("proving the required stages", patience_seconds=_PROOF_SECONDS)
    if not processes.is_main:
        while not marker.exists():
            time.sleep(_POLL_SECONDS)
        processes.wait()
        return
    proofs: dict[str, str] = {}
    warn = cache(reporter.warn)  # each damaged neighbour once, not once a stage
    for name, stage in REQUIRED_STAGES.items():
        passed_in = _passed_in(name, session, warn)
        if passed_in is None:
            reporter.say(f"train needs {name} first; running it")
            passed_in = _run_required(name, stage, session)
        else:
            reporter.say(f"{name}: passed before ({passed_in})")
        proofs[name] = str(passed_in)
    temporary = marker.with_suffix(".tmp")
    temporary.write_text(json.dumps(proofs, indent=2) + "\n", encoding="utf-8")
    temporary.replace(marker)
    processes.wait()


def _passed_in(name: str, session: Session, warn: Callable[[str], None]) -> Path | None:
    """The newest run below output_dir in which the stage passed for this model, with as strict a criterion."""
    least = session.config.overfit.num_samples

    def as_strict(summary: dict[str, Any]) -> bool:
        recorded = summary.get("criterion")
        if name != "overfit":
            return True
        # An earlier version may have written less: then it proves nothing.
        if not isinstance(recorded, dict) or not isinstance(recorded.get("num_samples"), int | float):
            return False
        return recorded["num_samples"] >= least and session.task.criterion.covered_by(recorded)

    return stage_passed(session.config, name, as_strict=as_strict, on_unreadable=warn)


def _run_required(name: str, stage: Callable[[Session], StageResult], session: Session) -> Path:
    config, run, reporter = session.config, session.run, session.reporter
    folder = RunFolder.create_beside(config, f"{run.path.name}-{name}")
    quiet = reporter.without_result()
    try:
        with folder.claim():
            finish_stage(name, session.alone(folder, quiet), stage)
    except InterruptedRunError:
        raise
    except Exception as error:
        message = f"{name} did not pass, so training did not begin; see {folder.path}"
        reporter.note(message)
        if isinstance(error, _FAILURES):
            _record_failure("train", message, config, run, reporter)
        raise
    finally:
        quiet.close()
    return folder.path
