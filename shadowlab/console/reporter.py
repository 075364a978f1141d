"""What a person reads while a stage runs: a live view on a terminal, plain lines elsewhere, log.txt always."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diagnostics.records import encode
from shadowlab.console.live_view import LiveView, shown

_PLAIN_WIDTH = 140


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
        self.console = Console(stderr=as_json, quiet=not active, highlight=False, soft_wrap=True, emoji=False)
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH  # tables in a log file need not fit 80 columns
        self._log: TextIO | None = None
        self._view: LiveView | None = None
        self._started, self._noun = time.monotonic(), "step"

    def log_to(self, file: Path) -> None:
        """From now on also append every line to `file`."""
        if self._active:
            if self._log is not None:
                self._log.close()
            self._log = file.open("a", encoding="utf-8")

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

    def table(self, table: Table) -> None:
        if not self.quiet:
            self.console.print(table)
        if self._log is not None:
            Console(file=self._log, width=_PLAIN_WIDTH, highlight=False, emoji=False).print(table)

    def start(self, title: str, total: int, done: int = 0, *, noun: str = "step") -> Self:
        """Begin a progress display that counts `noun`s; use as a context manager."""
        self._started, self._noun = time.monotonic(), noun
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
        """Show step `step` of `total`. Without a live view, and in log.txt, a line where `log` says so.

        Args:
            log: whether the line is printed.
            live: what the live view shows next to `numbers`.
            line: the line, in place of the usual one.
        """
        if self._view is not None:
            self._view.update(step, total, {**numbers, **(live or {})})
        if log:
            texts = [f"{name} {shown(value)}" for name, value in numbers.items()]
            seconds = f"{time.monotonic() - self._started:.0f} s"
            line = line or "  ".join([f"{self._noun} {step}/{total}", *texts, seconds])
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
        if self._log is not None:
            self._log.close()
            self._log = None

    def _print(self, text: str, style: str | None = None) -> None:
        # Text with a style, not print(style=...): that would colour the live view, too.
        self.console.print(Text(text, style=style or ""))

    def _to_log(self, text: str) -> None:
        if self._log is None:
            return
        try:
            self._log.write(text + "\n")
            self._log.flush()
        except OSError as error:
            self._log = None
            self.console.print(f"warning: log.txt ends here: {error.strerror}", markup=False)
