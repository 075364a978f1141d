"""`data check` before a training, unless its result for these data is known: what the samples together show."""

from pathlib import Path
from tempfile import TemporaryDirectory

from shadowlab.data import one_line
from shadowlab.distributed import SingleProcess
from shadowlab.errors import StageFailedError, UserError
from shadowlab.examination import Selection, check_data, keep_result, known_result, listing
from shadowlab.session import Session

QUICK = 512
"""Samples that are examined where a set has more: the whole of it is for `shadowlab data check`."""


def prove_data(session: Session) -> None:
    """See that `data check` finds nothing wrong with the configured data; run it where its result is not known.

    Called by one process.

    Raises:
        UserError: the data are faulty, and training would refuse them.
        StageFailedError: they can be read, and training would learn something wrong from them.
    """
    config, reporter = session.config, session.reporter
    place = config.data.path
    known = known_result(config, session.task.examine_data(place, None).fingerprint())
    if known is not None and known.passed and known.num_examined >= min(known.num_samples, QUICK):
        reporter.say(
            f"data check: passed before ({known.num_examined} of {known.num_samples} samples of {one_line(place)})"
        )
        return
    reporter.say(
        f"train needs data check first: examining at most {QUICK} samples of {one_line(place)} ...", style="dim"
    )
    alone, quiet = SingleProcess(session.processes.device), reporter.without_result()
    selection = Selection(QUICK, config.seed)
    try:
        with TemporaryDirectory(prefix="shadowlab-check-") as state:  # trainings that start together do not wait
            report = check_data(config, place, alone, quiet, selection=selection, state=Path(state) / "state")
    finally:
        quiet.close()
    assert report is not None, "of the only process"
    keep_result(config, report)
    for line in listing(report.notices) + report.warnings:
        reporter.warn(line)
    wrong = [str(problem) for problem in report.problems] + report.errors
    if not wrong:
        quick = "" if report.num_examined == report.num_samples else f" of {report.num_samples}"
        reporter.say(f"data check: {report.num_examined}{quick} samples, nothing wrong")
        return
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    message = (
        f"data check: {wrong[0]}{more}; training did not begin: see shadowlab data check {one_line(place)}, or give "
        "--skip-stages where it is meant"
    )
    raise UserError(message) if report.problems else StageFailedError(message)
