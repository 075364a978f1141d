"""What a person reads while a stage runs: a live view on a terminal, plain lines elsewhere, log.txt always."""

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rich.console import RenderableType
from rich.text import Text

from diagnostics.records import encode
from shadowlab.console.fitted_text import fitted_text
from shadowlab.console.live_view import LiveView, shown
from shadowlab.console.log_file import LogFile
from shadowlab.console.pace import Pace
from shadowlab.console.plain_console import PlainConsole
from shadowlab.interruption import signals
from shadowlab.plain_text import plain_text
from shadowlab.standard_streams import when_lost

_PLAIN_WIDTH = 80  # of what is not read on a terminal


class Reporter:
    """Prints for people, or one JSON document for machines.

    Args:
        as_json: text goes to stderr and stdout holds one JSON object.
        active: False on all ranks but the first, which then say nothing.
        quiet: warnings and the last line alone are printed; log.txt has everything.
    """

    def __init__(self, *, as_json: bool = False, active: bool = True, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._active = active
        self._concludes = active
        self.console = PlainConsole(stderr=as_json, quiet=not active, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH
        self._log: LogFile | None = None
        self._view: LiveView | None = None
        self._pace, self._noun = Pace(0, 0), "step"

    def log_to(self, file: Path) -> None:
        """From now on also append every line to `file`, and there what became of stdout and stderr."""
        if self._active:
            self._log = LogFile(file, lambda text: self._print(f"warning: {text}", "yellow"))
            if self._concludes:
                when_lost(self._say_lost)

    def say(self, text: str, style: str | None = None) -> None:
        if not self.quiet:
            self._print(text, style)
        self._to_log(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", "yellow")
        self._to_log(f"warning: {text}")

    def conclude(self, text: str, style: str | None = None) -> None:
        """The last line of a command, which `quiet` prints, too."""
        if self._concludes:
            self._print(text, style)
            self._to_log(text)
        else:
            self.say(text, style)

    def note(self, text: str) -> None:
        """To log.txt alone; the command line prints errors itself."""
        self._to_log(text)

    def without_result(self) -> "Reporter":
        """A reporter with the same output for a stage within a command: it has no JSON document and no last line, and
        keeps its own log."""
        other = Reporter(as_json=self.as_json, active=self._active, quiet=self.quiet)
        other._concludes = False
        return other

    def table(self, table: RenderableType, *, is_detail: bool = False) -> None:
        """Print a table. is_detail: to log.txt alone."""
        if not self.quiet and not is_detail:
            self.console.print(table)
        if self._log is not None:
            text = io.StringIO()
            PlainConsole(file=text, width=_PLAIN_WIDTH).print(table)
            self._log.write(text.getvalue())

    def start(self, title: str, total: int, done: int = 0, *, noun: str = "step") -> Self:
        """Begin a progress display that counts `noun`s; use as a context manager."""
        self._pace, self._noun = Pace(total, done), noun
        # Not on a dumb terminal: it cannot move its cursor back.
        if self.console.is_interactive and self._active and not self.quiet and total > 0:
            self._view = LiveView(self.console, title, total, done, noun=noun, owns_stdout=not self.as_json)
        return self

    def __enter__(self) -> Self:
        if self._view is not None:
            self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._view.stop()
            self._view = None

    def advance(
        self,
        step: int,
        total: int,
        numbers: Mapping[str, float | str],
        *,
        log: bool,
        live: Mapping[str, float | str] | None = None,
        line: str | None = None,
    ) -> None:
        """Show step `step` of `total`. Without a live view, and in log.txt, a line where `log` says so, or none came
        for long.

        Args:
            log: whether the line is printed at this step in any case.
            live: what the live view shows next to `numbers`.
            line: the line, in place of the usual one.
        """
        signals.stop_if_asked()  # every stage comes here often
        if self._view is not None:
            self._view.update(step, total, {**numbers, **(live or {})})
        if log or self._pace.is_overdue():
            texts = [f"{name} {shown(value)}" for name, value in numbers.items()]
            pace = self._pace.words(step, self._noun)  # in any case: it notes when the last line came
            line = line or "  ".join([f"{self._noun} {step}/{total}", *texts, *pace])
            if self._view is None and not self.quiet:
                self._print(line)
            self._to_log(line)

    def notice(self, text: str) -> bool:
        """Show `text` in the live view, if there is one; returns whether. Safe in a signal handler."""
        if self._view is None:
            return False
        self._view.notice(text)
        return True

    def result(self, document: dict[str, Any]) -> bool:
        """The JSON document of the command, on stdout; only with `as_json`. Returns whether it was written."""
        gives_result = self.as_json and self._concludes
        if gives_result:
            sys.stdout.write(json.dumps(encode(document), indent=2, allow_nan=False) + "\n")
            sys.stdout.flush()
        return gives_result

    def close(self) -> None:
        if self._log is not None and self._concludes:
            when_lost(None)
        self._log = None

    def _print(self, text: str, style: str | None = None) -> None:
        shown = fitted_text(text, self.console.width) if self.console.is_terminal else text
        # Text with a style, not print(style=...): that would colour the live view, too.
        self.console.print(Text(shown, style=style or ""))

    def _to_log(self, text: str) -> None:
        if self._log is not None:
            self._log.write(plain_text(text) + "\n")

    def _say_lost(self, what: str) -> None:
        text = f"warning: {what}; this goes on, and what it says is in log.txt"
        self._to_log(text)
        if what.startswith("stdout"):
            sys.stderr.write(f"{text}\n")
