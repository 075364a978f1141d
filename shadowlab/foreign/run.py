"""`shadowlab watch` as a whole: a script run under watch, or again to trace one of its steps."""

import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics.files import reason_of
from diagnostics.tracing import add_library
from shadowlab.errors import UserError
from shadowlab.foreign.following import Finding, Following
from shadowlab.foreign.script import Script
from shadowlab.foreign.start import Start, find_rerun, keep_rerun, restore_start
from shadowlab.foreign.traced import Traced
from shadowlab.foreign.watched import Recording, Watched
from shadowlab.plain_text import counted

_SAME_RUN = (
    "random numbers begin there as they began here; a script that takes them from the clock or the system makes "
    "another run, and what it writes it writes again"
)


@dataclass(frozen=True)
class Options:
    """How a script is watched."""

    incidents: Path = Path("incidents")
    """Where incidents are written."""
    from_step: int | None = None
    """1-based step to be traced; None: every step is watched."""
    explain: bool = False
    """Make the second run at once where a step could not be repeated."""
    records: Path | None = None
    """Folder of what each step shows; None: nothing is recorded."""
    statistics_every: int = 50
    """Steps between statistics in the records; 0 for never."""

    @classmethod
    def checked(
        cls,
        incidents: Path | None,
        from_step: int | None,
        *,
        explain: bool,
        records: Path | None,
        statistics_every: int | None,
    ) -> "Options":
        """As they were given; None takes the default.

        Raises:
            UserError: one of them is no such value, has no meaning with another, or the records' folder cannot be made.
        """
        if from_step is not None and from_step < 1:
            raise UserError(f"--from-step {from_step}: steps are counted from 1")
        if from_step is not None and records is not None:
            raise UserError("--records: a second run, which traces one step, writes none; leave it out")
        if statistics_every is not None and records is None:
            raise UserError("--statistics-every: statistics go into the records; say where those go with --records DIR")
        if statistics_every is not None and statistics_every < 0:
            raise UserError(f"--statistics-every {statistics_every}: 0 for never, or more")
        if records is not None:
            try:
                records.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--records {records}: no such folder can be made ({reason_of(error)})") from None
        where = incidents or (cls.incidents if records is None else records / cls.incidents)
        return cls(
            where, from_step, explain, records, cls.statistics_every if statistics_every is None else statistics_every
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a script."""

    raised: BaseException | None
    """What it raised, if anything."""
    was_stopped: bool
    """By the watch, whether it had raised something because of a value that is not finite or nothing yet."""
    lines: tuple[str, ...]
    """What there is to say."""
    again: tuple[str, ...] | None
    """The words behind `shadowlab` of a second run that would say more; None where there is no need."""


def watch_script(script: Script, options: Options) -> Outcome:
    """Run a script under watch, or up to the step that is to be traced."""
    add_library(Path(__file__).parent)
    if options.from_step is not None:
        return _trace(script, options.from_step, options)
    start = Start()
    # The script may go to another folder.
    records = None if options.records is None else Recording(options.records.absolute(), options.statistics_every)
    attendance = Watched(options.incidents.absolute(), records)
    following = attendance.following = Following(attendance)
    raised = following.run(script.run)
    finding = following.finding
    written = () if options.records is None or not following.num_steps else (f"records in {options.records}",)
    if finding is None:
        return Outcome(raised, False, (_count(following), *written), None)
    assert finding.verdict is not None and finding.verdict.step is not None
    lines = [f"error: {finding.verdict}", *finding.notes]
    if finding.incident is not None:
        with suppress(OSError):  # the folder itself could be written; the disk is full now
            keep_rerun(finding.incident, script.words, start, following.recent_losses())
    lines += [*_evidence(finding, options), *written]
    again = _second_run(script, finding.verdict.step + 1, options)
    if finding.is_explained:
        return Outcome(finding.cause, True, tuple(lines), None)
    lines.append(f"to trace it in a second run from the beginning: {shlex.join(['shadowlab', *again])}")
    lines.append(f"  {_SAME_RUN}")
    return Outcome(finding.cause, True, tuple(lines), again)


def run_again(words: Sequence[str], folder: Path) -> int:
    """Run `shadowlab *words` in a process of its own, in `folder`, without its stdout; returns its exit code."""
    command = [sys.executable, "-P", "-m", "cli.main", *words]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False, cwd=folder).returncode


def _second_run(script: Script, step: int, options: Options) -> tuple[str, ...]:
    incidents = [] if options.incidents == Options.incidents else ["--incidents", str(options.incidents)]
    return ("watch", "--from-step", str(step), *incidents, *script.words)


def _count(following: Following) -> str:
    elsewhere = following.steps.num_elsewhere
    threads = f"; {elsewhere} steps of other threads were not watched" if elsewhere else ""
    if not following.num_steps:
        return f"watch: no optimizer of torch has stepped in this process, so that nothing was watched{threads}"
    return f"watch: {counted(following.num_steps, 'step')}, no value that is not finite{threads}"


def _trace(script: Script, step: int, options: Options) -> Outcome:
    rerun = find_rerun(options.incidents, step, script.words)
    if rerun is not None:
        with suppress(ValueError, TypeError, KeyError):  # damaged: it is another run then, which is said below
            restore_start(rerun["start"])
    following = Following(Traced(step - 1, options.incidents.absolute()))
    raised = following.run(script.run)
    finding = following.finding
    compared = _compared(rerun, following.recent_losses(), step)
    if finding is None:
        said = f"error: the script ended after {counted(following.num_steps, 'step')}, before step {step}"
        return Outcome(raised, raised is None, () if raised is not None else (said,), None)
    lines = _of_trace(finding, step, options)
    return Outcome(finding.cause, True, (*lines, compared), None)


def _of_trace(finding: Finding, step: int, options: Options) -> list[str]:
    if finding.verdict is None:
        return [f"error: step {step} was finite in this run; it was traced, and the script stopped behind it"]
    return [f"error: {finding.verdict}", *finding.notes, *_evidence(finding, options)]


def _evidence(finding: Finding, options: Options) -> list[str]:
    """Where it is, in the words that the folder was given in."""
    return [] if finding.incident is None else [f"evidence in {options.incidents / finding.incident.name}"]


def _compared(rerun: dict[str, Any] | None, losses: dict[int, list[float]], step: int) -> str:
    """Whether the second run was the first one again, as far as its losses show."""
    if rerun is None:
        return (
            "no earlier incident of this step and command is there, so that nothing says whether this run is the same"
        )
    kept = rerun.get("losses")
    before = {int(index): [float(one) for one in values] for index, values in (kept or {}).items()}
    for index in sorted(before.keys() & losses.keys()):
        if not _are_equal(before[index], losses[index]):
            was, now = (", ".join(f"{one:.8g}" for one in values) for values in (before[index], losses[index]))
            hint = "seed all that it draws from, or read the verdict as that of another run"
            return (
                f"this run is NOT the first one again: the loss of step {index + 1} was {was} and is {now} now; {hint}"
            )
    if not before.keys() & losses.keys() - {step - 1}:
        return "the step is the first one: no loss before it says whether this run is the same"
    return "the losses of the steps before it are those of the first run, bit for bit"


def _are_equal(first: list[float], second: list[float]) -> bool:
    pairs = zip(first, second, strict=False)  # the traced step may end early
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
