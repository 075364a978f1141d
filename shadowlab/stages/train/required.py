"""What must have passed before a model is trained: data check, check-forward and overfit. What is missing is run
first."""

import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from diagnostics.files import replace_text
from shadowlab.errors import InterruptedRunError
from shadowlab.runs import RunFolder, stage_passed
from shadowlab.session import Session
from shadowlab.stages.check_forward import run_check_forward
from shadowlab.stages.overfit import run_overfit
from shadowlab.stages.result import StageResult
from shadowlab.stages.run import FAILURES, finish_stage, record_failure
from shadowlab.stages.train.data_check import prove_data
from shadowlab.stages.train.train import run_train

REQUIRED_STAGES: dict[str, Callable[[Session], StageResult]] = {
    "check-forward": partial(run_check_forward, train=run_train),
    "overfit": run_overfit,
}
_POLL_SECONDS = 1.0
_PROOF_SECONDS = 7 * 24 * 3600.0  # overfit may take days


def prove_required_stages(session: Session, *, skip: bool) -> None:
    """See that the data were checked, and that check-forward and overfit passed for this model configuration; run what
    is missing.

    Each missing stage runs on the first process, in a folder of its own inside the run's; the other processes wait for
    its entry in a file, outside any collective, so that no timeout can strike.

    Raises:
        StageFailedError: a stage fails, or the data are wrong; training does not begin.
        UserError: the data are faulty.
    """
    run, processes, reporter = session.run, session.processes, session.reporter
    if skip:
        listed = " and ".join(REQUIRED_STAGES)
        reporter.warn(
            f"--skip-stages: {listed} are not asked for, nor is data check; nothing proves this model and its data"
        )
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
    _prove_data(session)
    proofs: dict[str, str] = {}
    warn = cache(reporter.warn)  # each damaged neighbour once, not once a stage
    for name, stage in REQUIRED_STAGES.items():
        passed_in = _passed_in(name, session, warn)
        if passed_in is None:
            passed_in = _run_required(name, stage, session)
        else:
            reporter.say(f"{name}: passed before ({passed_in})")
        proofs[name] = str(passed_in)
    replace_text(marker, json.dumps(proofs, indent=2) + "\n")
    processes.wait()


def _prove_data(session: Session) -> None:
    try:
        prove_data(session)
    except FAILURES as error:
        session.reporter.note(str(error))
        record_failure("train", str(error), session.config, session.run, session.reporter)
        raise


def _passed_in(name: str, session: Session, warn: Callable[[str], None]) -> Path | None:
    """The newest run below output_dir in which the stage passed for this model, with as strict a criterion."""
    least = session.config.overfit.num_samples

    def as_strict(summary: dict[str, Any], run: RunFolder) -> bool:
        recorded = summary.get("criterion")
        if name == "check-forward":  # a picture of the user's own says nothing of the data
            return not summary.get("own_input", "--object" in run.command)  # earlier versions did not note it
        # An earlier version may have written less: then it proves nothing.
        if not isinstance(recorded, dict) or not isinstance(recorded.get("num_samples"), int | float):
            return False
        if recorded["num_samples"] < least or not session.task.criterion.covered_by(recorded):
            return False
        if not isinstance(summary.get("inputs"), list):
            warn(f"{run.path}: this overfit asked nothing of the inputs (an earlier version); run it again for that")
        return True

    return stage_passed(session.config, name, as_strict=as_strict, on_unreadable=warn)


def _run_required(name: str, stage: Callable[[Session], StageResult], session: Session) -> Path:
    config, run, reporter = session.config, session.run, session.reporter
    folder = run.create_required(config, name)
    reporter.say(f"train needs {name} first; running it in {folder.path}")
    quiet = reporter.without_result()
    try:
        with folder.claim():
            finish_stage(name, session.alone(folder, quiet), stage)
    except InterruptedRunError:
        raise
    except Exception as error:
        quiet.close()
        message = f"{name} did not pass, so training did not begin"
        message += "" if folder.discard() else f"; see {folder.path}"
        reporter.note(message)
        if isinstance(error, FAILURES):
            record_failure("train", message, config, run, reporter)
        raise
    finally:
        quiet.close()
    return folder.path
