"""Which of several processes was lost: killed, frozen, or stuck where the others are not.

A collective waits for every process, so one that is lost holds all of them, and the error that a backend's timeout
raises much later names none. Here a thread of each process publishes, through the store that they met in, where its
main thread stands. When a main thread has not moved for long, its own thread reads what the others have published.
"""

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.distributed_c10d import _get_default_store

from diagnostics.files import append_to
from shadowlab.launched import launcher_is_gone
from shadowlab.standard_streams import shout

REPORTED = 103  # exit code of a process that has named a lost one, or leaves that to another
_PERIOD_SECONDS = 1.0
_SUSPENDED_SECONDS = 5.0  # a period that took longer: the whole machine, or this process, stood still
_BUSY_SHARE = 0.1  # of a processor, in a period; a process that only waits uses less
_FIRST_SECONDS = 900.0  # patience at a place where a process has not been before: kernels are chosen, disks wake up
_GRACE_SECONDS = 5.0  # for a run that ends while its store goes
_JOINT = ("forward", "backward")  # places inside which processes wait for one another
_REPORTED = "shadowlab/reported"


@dataclass(frozen=True)
class Pulse:
    """What a process publishes about itself."""

    rank: int
    host: str
    pid: int
    beat: int
    """Counts the seconds of its thread; one that stands still is frozen or dead."""
    marks: int
    """Number of places that its main thread has come to."""
    place: str
    """The last of them."""
    at: str
    """The line that its main thread is on."""
    still_seconds: float
    """Since it came to that place."""
    idle_seconds: float
    """Since it last used a processor."""
    patience_seconds: float
    """How long the others wait for it there."""
    silence_seconds: float
    """How long its thread may be silent there."""


def lost_ranks(own: Pulse, others: Mapping[int, tuple[Pulse | None, float]]) -> dict[int, str]:
    """Rank -> what is wrong with it; empty while there is hope.

    Args:
        own: of the process that asks.
        others: rank -> its last pulse (None if it never gave one) and seconds since that one changed.
    """
    found = {}
    for rank, (pulse, seconds) in others.items():
        if seconds > (_FIRST_SECONDS if pulse is None else pulse.silence_seconds):
            where = f", last seen: {pulse.place}" if pulse is not None else ""
            found[rank] = f"has not answered for {seconds:.0f} s (killed, frozen, or its machine is gone){where}"
    pulses = [own, *(pulse for pulse, _ in others.values() if pulse is not None and pulse.rank not in found)]
    last, front = min(pulse.marks for pulse in pulses), max(pulse.marks for pulse in pulses)
    if last < front == own.marks:
        # It is behind for as long as we are ahead, not for as long as it is there.
        behind = [p for p in pulses if p.marks == last and min(p.still_seconds, own.still_seconds) > p.patience_seconds]
        found |= {p.rank: _stands(p) for p in behind}
    elif last == front and own.place in _JOINT and len(pulses) == len(others) + 1:
        # Nobody is ahead: if none of them computes, their lines must decide.
        idle = all(min(pulse.still_seconds, pulse.idle_seconds) > pulse.patience_seconds for pulse in pulses)
        found |= {pulse.rank: _stands(pulse) for pulse in pulses if idle}
    return found


def _stands(pulse: Pulse) -> str:
    return f"has stood still for {pulse.still_seconds:.0f} s ({pulse.place}, at {pulse.at})"


class Liveness:
    """Ends this process, with a message that names the lost one, once waiting for it is pointless.

    Args:
        hang_seconds: see `DistributedConfig`.
        store: that the processes share; by default the one they met in.
        end: called with the message; by default it is printed and the process ends with code `REPORTED`.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        hang_seconds: float,
        *,
        store: Any = None,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self.rank, self.count = rank, count
        self.log: Path | None = None
        self.go_on = ""
        self.saved: Callable[[], str] | None = None
        self.delay_seconds = 0.0
        self._hang_seconds = hang_seconds
        self._known_places: set[str] = set()
        self._main = threading.main_thread().ident
        meeting: Any = store or _get_default_store()
        self._store = meeting.clone()  # a connection of its own: others block while they wait
        self._end = end or self._say_and_end
        self._lock = threading.Lock()
        self._came_at = self._looked_at = self._busy_at = time.monotonic()
        self._processor_seconds = time.process_time()
        self._pulse = Pulse(
            rank, platform.node(), os.getpid(), 0, 0, "starting", "", 0.0, 0.0, _FIRST_SECONDS, _FIRST_SECONDS
        )
        self._seen: dict[int, tuple[Pulse | None, float]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)
        self._thread.start()

    def at(self, place: str, patience_seconds: float = 0.0, silence_seconds: float = 0.0) -> None:
        """The main thread has come to `place`. Costs no communication, but where other threads will get no turn."""
        first = 0.0 if place in self._known_places else _FIRST_SECONDS
        self._known_places.add(place)
        with self._lock:
            self._came_at = time.monotonic()
            self._pulse = replace(
                self._pulse,
                marks=self._pulse.marks + 1,
                place=place,
                still_seconds=0.0,
                patience_seconds=max(self._hang_seconds, first, patience_seconds, self.delay_seconds),
                silence_seconds=max(self._hang_seconds, silence_seconds),
            )
        if silence_seconds:
            self._publish()

    def move(self) -> None:
        """The main thread is still at its place, and has not stood still there."""
        with self._lock:
            self._came_at = time.monotonic()

    def close(self) -> None:
        """Stop watching; the others are informed, so that none takes it for lost."""
        if not self._closed.is_set():
            self._closed.set()
            if not launcher_is_gone():  # and the store with it
                with suppress(DistError):  # after a loss the store is gone, and so are its readers
                    self.at("done", _FIRST_SECONDS, _FIRST_SECONDS)
            # A thread that comes back from the store's C++ while Python shuts down aborts the process.
            self._thread.join(_GRACE_SECONDS)

    def _run(self) -> None:
        while not self._closed.wait(_PERIOD_SECONDS):
            try:
                self._look()
            except Exception as error:  # of several kinds: the store went with the process that held it
                if not self._closed.wait(_GRACE_SECONDS):
                    self._end(
                        f"the launcher, or the process that held the others' store, was lost ({_first_line(error)})"
                    )
                return

    def _look(self) -> None:
        if self._was_suspended():
            return
        own = self._publish()
        if own.still_seconds < 2 * _PERIOD_SECONDS:
            self._seen.clear()
            return
        found = lost_ranks(own, self._read_others())
        if not found:
            return
        for rank in found:
            self._kill(self._seen[rank][0] if rank != self.rank else None)
        listed = "; ".join(f"rank {rank} {what}" for rank, what in sorted(found.items()))
        ending = "the others waited for it and end" if len(found) < self.count else "one of them holds the others"
        first = self._store.add(_REPORTED, 1) == 1  # of those that noticed
        self._end(f"{listed}; {ending}" if first else "")

    def _was_suspended(self) -> bool:
        """Whether this thread had no turn for long (Ctrl-Z, a queue that suspends): then nothing it saw counts."""
        now = time.monotonic()
        gap = now - self._looked_at
        self._looked_at = now
        used, self._processor_seconds = self._processor_seconds, time.process_time()
        if self._processor_seconds - used > _BUSY_SHARE * gap:
            self._busy_at = now
        if gap < _SUSPENDED_SECONDS:
            return False
        with self._lock:
            self._came_at = min(now, self._came_at + gap)
        self._busy_at = now
        self._seen.clear()
        return True

    def _kill(self, lost: Pulse | None) -> None:
        """A frozen process does not hear the launcher, which would wait for it."""
        if lost is not None and lost.host == self._pulse.host:
            with suppress(ProcessLookupError):
                os.kill(lost.pid, signal.SIGKILL)

    def _publish(self) -> Pulse:
        with self._lock:
            now = time.monotonic()
            self._pulse = replace(
                self._pulse,
                beat=self._pulse.beat + 1,
                at=_line_of(self._main),
                still_seconds=now - self._came_at,
                idle_seconds=now - self._busy_at,
            )
            pulse = self._pulse
        self._store.set(_key(self.rank), json.dumps(asdict(pulse)))
        return pulse

    def _read_others(self) -> dict[int, tuple[Pulse | None, float]]:
        """As `lost_ranks` wants it."""
        now = time.monotonic()
        for rank in range(self.count):
            if rank == self.rank:
                continue
            given = self._store.check([_key(rank)])
            pulse = Pulse(**json.loads(self._store.get(_key(rank)))) if given else None
            old = self._seen.get(rank)
            if old is None or _beat(pulse) != _beat(old[0]):
                self._seen[rank] = (pulse, now)
        return {rank: (pulse, now - since) for rank, (pulse, since) in self._seen.items()}

    def _say_and_end(self, message: str) -> None:
        if message:
            saved = f"; {self.saved()}" if self.saved is not None else ""
            line = f"error: {message}{saved}" + (f"; go on with: {self.go_on}" if self.go_on else "")
            shout(f"\n{line}\n")
            if self.log is not None:
                with suppress(OSError), append_to(self.log) as log:
                    log.write(f"{line}\n".encode())
        os._exit(REPORTED)  # the main thread sits in a collective that nothing can end


def _key(rank: int) -> str:
    return f"shadowlab/alive/{rank}"


def _beat(pulse: Pulse | None) -> int:
    return -1 if pulse is None else pulse.beat


def _line_of(thread: int | None) -> str:
    """`path:line in function` of the innermost frame of a thread that is not torch's."""
    innermost = sys._current_frames().get(thread or 0)
    frame = innermost
    while frame is not None and f"{os.sep}torch{os.sep}" in frame.f_code.co_filename:
        frame = frame.f_back
    frame = frame or innermost
    if frame is None:
        return "an unknown line"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
