"""stdout and stderr that may be closed, full, or gone with their terminal. Imports nothing heavy: it comes first.

A short command keeps to Unix: `shadowlab runs | head -1` ends quietly. A long one (`outlived`) goes on without them.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_NAMES = ("stdout", "stderr")
_UNWRITABLE = 3  # exit code of a short command whose words the disk refuses
_CLOSED = 1  # of one whose reader has gone


@contextmanager
def guarded() -> Iterator[None]:
    """A whole command. A stream that cannot be written ends it by SystemExit: without a word where its reader has
    gone (EPIPE), else with one line on stderr."""
    _fill_gaps()
    streams = [_wrapped(name) for name in _NAMES]
    hook = threading.excepthook
    threading.excepthook = lambda failed: None if _is_raised_again(failed) else hook(failed)
    try:
        yield
    except OSError as error:
        if all(stream.error is not error for stream in streams):
            raise
    finally:
        threading.excepthook = hook
        for stream in streams:
            with suppress(OSError):  # what is still in its buffer
                stream.flush()
        ended = next((stream.error for stream in streams if stream.error is not None and not stream.outlived), None)
        if ended is not None:
            leaving = sys.exception()
            code = leaving.code if isinstance(leaving, SystemExit) else 0
            reader_is_gone = getattr(ended, "errno", None) == errno.EPIPE
            if not reader_is_gone:
                shout(f"error: stdout cannot be written ({getattr(ended, 'strerror', None) or ended})\n")
            raise SystemExit(code or (_CLOSED if reader_is_gone else _UNWRITABLE))


def _is_raised_again(failed: threading.ExceptHookArgs) -> bool:
    """Whether this is a file that TensorBoard's thread cannot write: its owner has the error, too, and says it in a
    line."""
    return isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread"


@contextmanager
def handed_over() -> Iterator[None]:
    """Inside, stdout and stderr are Python's own: code runs that is not ours."""
    ours = {name: getattr(sys, name) for name in _NAMES}
    for name, stream in ours.items():
        setattr(sys, name, stream._stream if isinstance(stream, _Stream) else stream)
    try:
        yield
    finally:
        for name, stream in ours.items():
            with suppress(OSError, ValueError):
                getattr(sys, name).flush()
            setattr(sys, name, stream)


def outlived() -> None:
    """From now on this process goes on where stdout or stderr cannot be written; `when_lost` says who is informed."""
    for name in _NAMES:
        _wrapped(name).outlived = True
    while _closed_at_start:
        _report(f"{_closed_at_start.pop()} was closed when this was started")


def when_lost(inform: Callable[[str], None] | None) -> None:
    """Have `inform` called with a sentence about each stream that is lost, those of before included; None: nobody."""
    global _inform
    _inform = inform
    while _inform is not None and _unsaid:
        _inform(_unsaid.pop(0))


def shout(text: str) -> None:
    """Write to stderr at once, from a signal handler or another thread, where that can be done."""
    with suppress(OSError):
        os.write(2, text.encode())


def _fill_gaps() -> None:
    """Open /dev/null in place of each standard stream that was closed when the command started.

    Otherwise the next file that is opened takes its number, and what a library prints is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for number, name in enumerate(_NAMES, start=1):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115, until the end
            _closed_at_start.append(name)


def _wrapped(name: str) -> "_Stream":
    stream = getattr(sys, name)
    if not isinstance(stream, _Stream):
        stream = _Stream(stream, name)
        setattr(sys, name, stream)
    return stream


class _Stream:
    """A text stream that notes the first error of writing; from then on what is written goes to /dev/null.

    The error is raised, too, unless the stream is `outlived`.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self.outlived = False
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: OSError | ValueError) -> None:
        if isinstance(error, UnicodeError):
            raise error
        if self.error is None:
            self.error = error
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self.outlived:
                _report(f"{self._name} cannot be written any more ({getattr(error, 'strerror', None) or error})")
        if not self.outlived:
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _report(what: str) -> None:
    if _inform is None:
        _unsaid.append(what)
    else:
        _inform(what)


_inform: Callable[[str], None] | None = None
_unsaid: list[str] = []
_closed_at_start: list[str] = []
