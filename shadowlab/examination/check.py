"""The check of a data set: every sample is examined once, by one of several processes, and none again on resuming."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diagnostics.files import hold, reason_of, remove_tree
from shadowlab.console import Reporter
from shadowlab.data import Examination, one_line
from shadowlab.distributed import Processes, share_out
from shadowlab.errors import InterruptedRunError, UserError
from shadowlab.examination.known import keep_picture
from shadowlab.examination.parts import Part, Parts, examine_part
from shadowlab.examination.report import CheckReport, merged
from shadowlab.own_cache import make_cache_folder
from shadowlab.seeding import permutation
from shadowlab.settings import Config
from shadowlab.tasks import open_task

_FOLDER = "checks"
_MOST_CHECKS = 4  # that were stopped and may be resumed; older ones are removed
_PART = (4, 64)  # samples: at least, at most; a process that is stopped has to do as many again
_NUM_PARTS = 64  # if the samples are few
_LOCK = "lock"
_OPENING_SECONDS = 3600.0  # the other processes wait this long while one reads names and metadata


@dataclass(frozen=True)
class Selection:
    """Which samples are examined."""

    quick: int | None = None
    """So many, drawn over the whole set; None: all of them."""
    seed: int = 0

    def samples(self, count: int) -> Sequence[int]:
        """Their numbers among `count`, ascending."""
        if self.quick is None or self.quick >= count:
            return range(count)
        return sorted(permutation(count, self.seed, "quick")[: self.quick].tolist())


def check_data(
    config: Config,
    path: str,
    processes: Processes,
    reporter: Reporter,
    *,
    image_size: int | None = None,
    selection: Selection | None = None,
    resume: bool = False,
    state: Path | None = None,
) -> CheckReport | None:
    """Examine the samples of the data set at `path` as those of the configured task; every process calls it.

    Args:
        image_size: pixels; where given, samples must also survive being brought to this size.
        selection: which samples; by default all.
        resume: do not examine again what a check that was stopped has examined, if its files are the same.
        state: folder of what is found so far; by default one in the user's cache folder. It is emptied at the end.

    Returns:
        The report, on the first process; None on the others.

    Raises:
        UserError: there is no data set, it is not the same for all processes, or what is found cannot be kept.
        InterruptedRunError: Ctrl-C or a signal; says what is kept.
    """
    selection = selection or Selection()
    examination = _open(config, path, image_size, processes)
    for remark in examination.remarks:
        reporter.warn(remark)
    kind = f"{config.task} {image_size}"
    samples = selection.samples(len(examination.ids))
    pieces = _pieces(samples)
    if len(samples) < len(examination.ids):
        reporter.say(f"a sample: the pictures of {len(samples)} of {len(examination.ids)} samples are examined")
    with _state(processes, reporter, state, f"{os.path.realpath(path)}\n{kind}\n{selection}") as (folder, is_kept):
        parts = Parts(folder, kind, examination)
        with processes.together():
            left = _left(parts, pieces, reporter, resume=resume) if processes.is_main else []
        left = processes.share(left)

        def work(numbers: Sequence[int]) -> Iterable[None]:
            for number in numbers:
                basis = parts.basis(pieces[number])
                parts.write(number, examine_part(examination, pieces[number]), basis)
                yield None

        try:
            share_out(processes, left, work, reporter, noun="sample", size=lambda number: len(pieces[number]))
        except KeyboardInterrupt:
            raise InterruptedRunError(_stopped(parts, pieces, is_kept)) from None
        with processes.together():
            report = _report(examination, parts, pieces) if processes.is_main else None
        if processes.is_main:
            parts.clear()
    return report


def _open(config: Config, path: str, image_size: int | None, processes: Processes) -> Examination:
    """The same data set on every process; the first of each machine reads all names and metadata."""
    task, first = open_task(config), None
    processes.at("opening the data", patience_seconds=_OPENING_SECONDS, silence_seconds=_OPENING_SECONDS)
    with processes.together():
        if processes.is_first_here:
            first = task.examine_data(path, image_size, renew=True)
    with processes.together():
        # Of a large set there is a kept index by now.
        examination = task.examine_data(path, image_size) if first is None else first
    if processes.count > 1 and len(set(processes.gather([examination.fingerprint()]))) > 1:
        error = UserError(f"{one_line(path)}: changed while it was opened; start the check again")
        error.shared = True
        raise error
    return examination


def _pieces(samples: Sequence[int]) -> list[Sequence[int]]:
    """Runs of consecutive samples; their number alone decides how long they are."""
    least, most = _PART
    length = min(most, max(least, len(samples) // _NUM_PARTS))
    return [samples[first : first + length] for first in range(0, len(samples), length)]


def _left(parts: Parts, pieces: Sequence[Sequence[int]], reporter: Reporter, *, resume: bool) -> list[int]:
    """Numbers of the pieces that are still to be examined."""
    there = set(parts.numbers())
    if not resume:
        if there:
            reporter.say("an earlier check was stopped; this one starts anew (--resume goes on with it)")
        for number in there:
            parts.remove(number)
        return list(range(len(pieces)))
    whole = {
        number
        for number in there & set(range(len(pieces)))
        if parts.read(number, parts.basis(pieces[number])) is not None
    }
    done, total = sum(len(pieces[number]) for number in whole), sum(map(len, pieces))
    if not there:
        reporter.say("there is nothing to resume: the check starts from the beginning")
    elif done:
        reporter.say(f"resuming: {done} of {total} samples are examined already")
    else:
        reporter.say("all files have changed since the check was stopped: it starts from the beginning")
    return [number for number in range(len(pieces)) if number not in whole]


def _report(examination: Examination, parts: Parts, pieces: Sequence[Sequence[int]]) -> CheckReport:
    there = set(parts.numbers())
    missing = sum(number not in there for number in range(len(pieces)))
    if missing:
        raise UserError(
            f"{missing} of {len(pieces)} parts are not in {parts.folder}: on several machines give --state DIR, a "
            "folder that all of them share"
        )

    def found() -> Iterator[tuple[Sequence[int], Part]]:
        for number, samples in enumerate(pieces):
            part = parts.read(number)
            if part is None:
                raise UserError(f"{parts.folder}: part {number} is damaged; go on with --resume")
            yield samples, part

    return merged(examination, found(), sum(map(len, pieces)), partial(keep_picture, examination.fingerprint()))


def _stopped(parts: Parts, pieces: Sequence[Sequence[int]], is_kept: bool) -> str:
    if not is_kept:
        return "interrupted: nothing is kept, for the cache folder cannot be written (--state DIR names another)"
    done = sum(len(pieces[number]) for number in parts.numbers() if number < len(pieces))
    total = sum(map(len, pieces))
    return f"interrupted: {done} of {total} samples are examined; go on with the same command and --resume"


@contextmanager
def _state(processes: Processes, reporter: Reporter, given: Path | None, words: str) -> Iterator[tuple[Path, bool]]:
    """The folder of this check's parts, which no other check uses meanwhile, and whether it outlives this command."""
    folder, lock, is_kept = Path(), None, True
    with processes.together():
        if processes.is_main:
            folder, is_kept = _open_folder(given, words)
            lock = _locked(folder)
            if not is_kept:
                reporter.say("the cache folder cannot be written: an interrupted check will not be resumed")
    folder, is_kept = processes.share((folder, is_kept))
    try:
        yield folder, is_kept
    finally:
        if lock is not None:
            with suppress(OSError):
                (folder / _LOCK).unlink()  # while it is held: whoever has opened it by then looks again
                folder.rmdir()  # if no part of it is left
            os.close(lock)
            if not is_kept:
                shutil.rmtree(folder, ignore_errors=True)


def _open_folder(given: Path | None, words: str) -> tuple[Path, bool]:
    if given is not None:
        try:
            given.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--state {given}: cannot be made ({reason_of(error)}); choose another folder") from error
        return given, True
    name = hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        checks = make_cache_folder(_FOLDER)
        folder = checks / name
        folder.mkdir(mode=0o700, exist_ok=True)
        _remove_old(checks, folder)
        return folder, os.access(folder, os.W_OK)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="shadowlab-check-")), False


def _remove_old(checks: Path, own: Path) -> None:
    """Those that were stopped long ago; one that is running now is left alone, whatever its age."""
    ages = {}
    for path in checks.iterdir():
        with suppress(OSError):  # another command has removed it
            ages[path] = path.stat().st_mtime
    ages.pop(own, None)
    for path in sorted(ages, key=lambda path: ages[path])[: 1 - _MOST_CHECKS]:
        with suppress(UserError, OSError):
            lock = _locked(path)
            try:
                remove_tree(path)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int:
    """An open file that is locked. Raises UserError where another check holds it."""
    while True:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = hold(folder / _LOCK)
        except FileNotFoundError:
            if not folder.parent.is_dir():
                raise
            continue  # a check that came to its end has removed it meanwhile
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({reason_of(error)}); choose another --state") from error
        if lock is None:
            raise UserError(f"another check of this data set is running, in {folder}; wait for it, or stop it")
        return lock
