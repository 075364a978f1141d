"""SIGINT, SIGTERM and SIGHUP: one object hears them for the whole command. Imports nothing heavy: it comes first.

What a signal does depends on what the command is doing:

- By default it ends at once: KeyboardInterrupt; while torch is imported, without an exception. Python drops that
  exception where it lands in a destructor or a callback; then it is raised again a moment later. Where a library
  catches it, the next `stop_if_asked` raises it.
- `after_step`: it sets `asked`, for a training loop that finishes its step and saves.
- `passed_on`: it is kept, for a launcher that passes it on to its processes.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from shadowlab.errors import InterruptedRunError
from shadowlab.standard_streams import shout

_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_PRESS_SECONDS = 0.5  # a launcher passes the terminal's signal on to processes that had it already
_AGAIN_SECONDS = 0.01  # until a destructor that swallowed it is through
_NOTICE = "stopping: this step is finished, then saved; Ctrl-C (again) ends at once without saving"
_MEANING = {"SIGINT": "Ctrl-C", "SIGHUP": "the terminal or its connection was closed"}


class Interruption:
    """What this process was asked by signals. There is one: `signals`."""

    def __init__(self) -> None:
        self.asked = False
        """Whether a signal asked this command to end."""
        self.name = ""
        """`SIGHUP (the terminal or its connection was closed)`: the first one."""
        self._raised = False  # KeyboardInterrupt, by the handler
        self._again = False  # SIGINT comes from ourselves: Python dropped the exception of the last
        self._first_at = 0.0
        self._phase = "at once"
        self._speaks: Callable[[str], bool] | None = None
        self._kept: list[int] = []
        self._before: dict[int, Any] = {}
        self._installed = False
        self._hook: Any = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, this object hears; without effect inside another such context, or outside of the main thread.

        A SIGHUP that is ignored when it begins (nohup) stays ignored.
        """
        if self._installed or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._hook = sys.unraisablehook
        self.asked, self.name, self._raised, self._again, self._phase = False, "", False, False, "at once"
        try:
            self._installed = True
            for number in _HEARD:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._hear)
            sys.unraisablehook = self._dropped
            yield
        finally:
            self._installed = False
            while self._before:
                signal.signal(*self._before.popitem())
            sys.unraisablehook = self._hook

    def leave_quietly(self) -> None:
        """The command is through: what comes while Python takes itself down must not print or change its exit code."""
        while self._before:
            number, _ = self._before.popitem()
            signal.signal(number, signal.SIG_IGN if self.asked or number != signal.SIGINT else signal.SIG_DFL)
        # One that passed through exec() of a text leaves a mark, for which Python would end by SIGINT whatever the exit
        # code; the next exec() takes it away.
        exec("")

    def stop_if_asked(self) -> None:
        """A safe point: raises KeyboardInterrupt where a signal was heard that ends at once, and was lost."""
        if self.asked and self._phase == "at once":
            self._raised = True
            raise KeyboardInterrupt

    @contextmanager
    def unmasked(self) -> Iterator[None]:
        """An error that a library made of our KeyboardInterrupt (safetensors does) leaves this as KeyboardInterrupt."""
        try:
            yield
        except InterruptedRunError:
            raise
        except Exception as error:
            if self._raised:
                raise KeyboardInterrupt from error
            raise

    @contextmanager
    def after_step(
        self, *, speaks: bool, several: bool = False, show: Callable[[str], bool] | None = None
    ) -> Iterator["Interruption"]:
        """Inside, the first signal sets `asked`, for the loop to end by itself; a Ctrl-C after it raises
        KeyboardInterrupt. SIGTERM and SIGHUP may come again: launchers and queues repeat them.

        Args:
            speaks: whether this process says at once that it has heard.
            several: there are other processes. Then SIGTERM is not answered at once: it may mean that one of them
                was lost, so that this step can never be finished.
            show: puts the words where a live view would draw over a line; returns whether it did. Called in the
                handler.
        """

        def speak(name: str) -> bool:
            return speaks and not (several and name == "SIGTERM") and not (show is not None and show(_NOTICE))

        with self.heard():
            before = self._phase
            self._phase, self._speaks = "after step", speak
            try:
                yield self
            finally:  # one that was heard ends the command by itself; another error must not be covered by it
                self._phase, self._speaks = "ending" if self.asked else before, None

    @contextmanager
    def passed_on(self) -> Iterator[list[int]]:
        """Inside, signals are kept in the list, in their order, and do nothing."""
        with self.heard():
            before, self._phase, self._kept = self._phase, "passed on", []
            try:
                yield self._kept
            finally:
                self._phase = before

    @contextmanager
    def fatal(self) -> Iterator[None]:
        """Inside, a signal ends this process at once, as if nobody heard it.

        For a wait in C++, where Python's handlers have no turn, of a process that has nothing to save.
        """
        self.stop_if_asked()
        numbers = tuple(self._before) if self._installed else ()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, self._hear)

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """Inside, signals do what they did before this object heard them: code runs that is not ours."""
        numbers = dict(self._before) if self._installed else {}
        hook = sys.unraisablehook
        for number, handler in numbers.items():
            signal.signal(number, handler)
        if numbers:
            sys.unraisablehook = self._hook
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, self._hear)
            sys.unraisablehook = hook

    def let_go(self) -> None:
        """In a process that was forked: a Ctrl-C is its parent's to answer, which ends it by SIGTERM."""
        if self._installed:
            self._installed = False
            for number in self._before:
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
            self._before.clear()
            sys.unraisablehook = self._hook

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._again and _is_in(frame, self._dropped.__code__):
            return  # where it would be dropped, too; it comes once more
        again, self._again = self._again, False
        if self._phase == "passed on":
            self._kept.append(number)
            return
        now = time.monotonic()
        first = not self.asked
        if first:
            word = signal.Signals(number).name
            self.name = f"{word} ({_MEANING[word]})" if word in _MEANING else word
            self.asked, self._first_at = True, now
        if self._phase == "after step" and first:
            if self._speaks is not None and self._speaks(signal.Signals(number).name):
                shout(f"\n{_NOTICE}\n")  # not print: the signal may have come in the middle of one
        elif ((first or again) and self._phase == "at once") or (
            number == signal.SIGINT and now - self._first_at > _ONE_PRESS_SECONDS
        ):
            if _torch_is_imported():
                shout("interrupted\n")
                os._exit(InterruptedRunError.exit_code)
            self._raised = True
            raise KeyboardInterrupt

    def _dropped(self, unraisable: Any) -> None:
        """Python could not raise an exception where it came up. Ours is raised again once that place is left."""
        if unraisable.exc_type is KeyboardInterrupt and self.asked:
            threading.Thread(target=self._deliver_again, name="interruption", daemon=True).start()
        else:
            self._hook(unraisable)

    def _deliver_again(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        self._again = True
        while self._again and self._installed:
            time.sleep(_AGAIN_SECONDS)
            if self._again and self._installed:
                signal.pthread_kill(main, signal.SIGINT)  # unlike a flag, it wakes what sleeps


def _torch_is_imported() -> bool:
    """Whether its import is under way: C++ that calls Python back then aborts over a KeyboardInterrupt."""
    return bool(getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False))


def _is_in(frame: FrameType | None, code: CodeType) -> bool:
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


signals = Interruption()
os.register_at_fork(after_in_child=signals.let_go)
