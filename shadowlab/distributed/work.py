"""A list of items that several processes share: each is done once, by one of them, under one progress for all.

What an item leaves behind must depend on the item alone. Then the files are the same, bit for bit, whatever the number
of processes; so every item is computed in one thread, too.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.distributed.distributed_c10d import _get_default_store

from shadowlab.console import Reporter
from shadowlab.distributed.devices import crowded, launched_processes, require_gpus
from shadowlab.distributed.launch import launch_processes
from shadowlab.distributed.processes import Processes
from shadowlab.errors import InterruptedRunError, LostProcessError, UserError

WORK_IS_KEPT = "what is done is kept; go on with the same command"
_ITEM_SECONDS = 2 * 3600.0  # that an item may take before its process counts as stuck
_SILENT_SECONDS = 300.0  # that a library may hold the interpreter
_TALK_SECONDS = 0.3  # between two exchanges of progress
_LINE_SECONDS = (10.0, 300.0)  # between two lines of progress: at first, at most
_LINE_SHARE = 0.2  # of the time so far, between them

T = TypeVar("T")
R = TypeVar("R")


def launch_if_asked(
    count: int | None, module: str, words: Sequence[str], *, device: str = "cpu", kept: str = WORK_IS_KEPT
) -> int | None:
    """Start `count` processes of the command `python -m MODULE WORDS`, unless torchrun or SLURM has.

    Args:
        count: from `--processes`; None where it was not given.
        device: what each of them computes on.
        kept: what is said where they are stopped.

    Returns:
        Their exit code; None where the command is to run in this process, alone or as one of several.

    Raises:
        UserError: a launcher has started another number.
        MissingDependencyError: more processes than GPUs.
        LostProcessError: a process was killed or stuck; names it.
        InterruptedRunError: stopped by Ctrl-C or SIGTERM.
    """
    launched = launched_processes()
    if launched is not None:
        if count not in (None, launched):
            error = UserError(
                f"--processes {count}: {launched} are here, started by a launcher (torchrun); leave --processes out"
            )
            error.shared = True
            raise error
        return None
    if count is None or count == 1:
        return None
    require_gpus(device, count)
    for warning in crowded(device, count):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        code = launch_processes(count, module, words)
    except LostProcessError as lost:
        named = LostProcessError(f"{lost}; {kept}")
        named.printed = lost.printed
        raise named from None
    except InterruptedRunError:
        code = InterruptedRunError.exit_code
    if code == InterruptedRunError.exit_code:
        raise InterruptedRunError(f"interrupted: {kept}")
    return code


@contextmanager
def workers(device: str = "cpu") -> Iterator[Processes]:
    """The processes that share this command's work, this one among them; alone where no launcher started it."""
    processes = Processes(device)
    processes.report_losses_to(None, go_on="the same command")
    try:
        yield processes
    finally:
        processes.close()


def share_out(
    processes: Processes,
    items: Sequence[T],
    work: Callable[[Sequence[T]], Iterable[R]],
    reporter: Reporter,
    *,
    noun: str,
    size: Callable[[T], int] = lambda _: 1,
    first_only: bool = False,
) -> list[R]:
    """Have every item done by one of the processes: rank r takes items r, r + count, r + 2 count, ...

    A collective: every process calls it, with the same items.

    Args:
        work: from a process's items to what comes of each, in their order, as they are done.
        noun: what the progress counts.
        size: how many of them an item is.
        first_only: leave the results of all on the first rank alone; the others get none.

    Returns:
        What came of the items, in their order, on every rank.

    Raises:
        UserError: as `work` raised it on one of the processes; raised on all, after each has ended its running item.
    """
    total = sum(map(size, items))
    tally = _Tally(processes, total, reporter, noun)
    mine = items[processes.rank :: processes.count]
    results: list[R] = []
    processes.at("at work", patience_seconds=_ITEM_SECONDS, silence_seconds=_SILENT_SECONDS)
    with processes.together():
        try:
            with _one_thread(), reporter.start(f"{noun}s", total, noun=noun):
                for item, result in zip(mine, work(mine), strict=True):
                    results.append(result)
                    processes.move()
                    if not tally.add(size(item)):
                        break  # another has failed, and `together` raises its error
                processes.at("waiting for the others")
                tally.wait()
        except UserError:
            tally.fail()
            raise
    return _in_order(processes, results, len(items), first_only=first_only)


def _in_order(processes: Processes, results: list[R], count: int, *, first_only: bool) -> list[R]:
    """What rank r has of items r, r + n, ... as one list; empty where it is not wanted."""
    joined = iter(processes.gather(results, first_only=first_only))
    if first_only and not processes.is_main:
        return []
    ordered: list[Any] = [None] * count
    for rank in range(processes.count):
        for i in range(rank, count, processes.count):
            ordered[i] = next(joined)
    return ordered


@contextmanager
def _one_thread() -> Iterator[None]:
    """A sum that threads share is rounded as their number has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Tally:
    """How much all have done, and whether one has failed, through the store that the processes met in."""

    _number = 0  # of tallies so far, the same on every rank: the calls are collective

    def __init__(self, processes: Processes, total: int, reporter: Reporter, noun: str) -> None:
        _Tally._number += 1
        self._key = f"shadowlab/work/{_Tally._number}"
        self._store: Any = None
        if processes.count > 1:
            meeting: Any = _get_default_store()
            self._store = meeting.clone()  # the other is held by whoever waits in a collective
        self._total, self._reporter, self._noun = total, reporter, noun
        self._is_main = processes.is_main
        self._done = self._pending = 0
        self._failed = self._shown_all = False
        self._began = self._talked = time.monotonic()
        self._line_at = self._began + _LINE_SECONDS[0]

    def add(self, number: int) -> bool:
        """Count what this process has done; False where another has failed."""
        self._pending += number
        if self._store is None or time.monotonic() - self._talked >= _TALK_SECONDS:
            self._exchange()
        return not self._failed

    def wait(self) -> None:
        """Until all have done everything, or one has failed."""
        self._exchange()
        while self._done < self._total and not self._failed:
            time.sleep(_TALK_SECONDS)
            self._exchange()

    def fail(self) -> None:
        if self._store is not None:
            self._store.add(f"{self._key}/failed", 1)

    def _exchange(self) -> None:
        if self._store is None:
            self._done += self._pending
        else:
            self._done = self._store.add(f"{self._key}/done", self._pending)
            self._failed = self._store.add(f"{self._key}/failed", 0) > 0
        self._pending = 0
        self._talked = time.monotonic()
        if self._is_main and self._total and not self._shown_all:
            self._show()

    def _show(self) -> None:
        now, done, total = self._talked, self._done, self._total
        seconds = now - self._began
        rate = done / seconds if seconds > 0 else 0.0
        ends = self._shown_all = done == total
        line = f"{self._noun} {done}/{total}"
        if rate:
            left = "" if ends else f"  {_duration((total - done) / rate)} left"
            line += f"  {_rate(rate)} {self._noun}s/s{left}"
        due = ends or now >= self._line_at
        if due:
            first, most = _LINE_SECONDS
            self._line_at = now + min(most, max(first, _LINE_SHARE * seconds))
        self._reporter.advance(
            done, total, {f"{self._noun}s/s": _rate(rate)}, log=due, line=f"{line}  {_duration(seconds)}"
        )


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _duration(seconds: float) -> str:
    """`7 s`, `4 min 10 s`, `3 h 20 min`, `2 d 4 h`."""
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, length), (finer, part) in zip(units, units[1:], strict=False):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {name}" + (f" {rest} {finer}" if rest else "")
    return f"{whole} s"
