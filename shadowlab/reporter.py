"""What a person reads while a stage runs: a progress bar on a terminal, plain lines elsewhere, log.txt always."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from diagnostics.records import encode

_PLAIN_WIDTH = 140


class Reporter:
    """Prints for people, or one JSON document for machines.

    Args:
        as_json: text goes to stderr and stdout holds one JSON object.
        active: False on all ranks but the first, which then say nothing.
    """

    def __init__(self, *, as_json: bool = False, active: bool = True) -> None:
        self.as_json = as_json
        self._active = active
        self._gives_result = as_json and active
        self.console = Console(stderr=as_json, quiet=not active, highlight=False, soft_wrap=True, emoji=False)
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH  # tables in a log file need not fit 80 columns
        self._log: TextIO | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._started, self._noun = time.monotonic(), "step"

    def log_to(self, file: Path) -> None:
        """From now on also append every line to `file`."""
        if self._active:
            if self._log is not None:
                self._log.close()
            self._log = file.open("a", encoding="utf-8")

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)
        self._to_log(text)

    def note(self, text: str) -> None:
        """To log.txt alone; the command line prints errors itself."""
        self._to_log(text)

    def without_result(self) -> "Reporter":
        """A reporter with the same voice that prints no JSON document and keeps its own log."""
        other = Reporter(as_json=self.as_json, active=self._active)
        other._gives_result = False
        return other

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}", style="yellow")

    def table(self, table: Table) -> None:
        self.console.print(table)
        if self._log is not None:
            Console(file=self._log, width=_PLAIN_WIDTH, highlight=False, emoji=False).print(table)

    def start(self, title: str, total: int, done: int = 0, *, noun: str = "step") -> Self:
        """Begin a progress display that counts `noun`s; use as a context manager."""
        self._started, self._noun = time.monotonic(), noun
        if self.console.is_terminal and self._active:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console)
            self._task = self._progress.add_task(title, total=total, completed=done, numbers="")
        return self

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def advance(self, step: int, total: int, numbers: Mapping[str, float | str], *, log: bool) -> None:
        """Show step `step` of `total`. Without a terminal, and in log.txt, a line where `log` says so."""
        texts = [f"{n} {value if isinstance(value, str) else f'{value:.4g}'}" for n, value in numbers.items()]
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, total=total, numbers="  ".join(texts))
        if log:
            line = "  ".join([f"{self._noun} {step}/{total}", *texts, f"{time.monotonic() - self._started:.0f} s"])
            if self._progress is None:
                self.console.print(line, markup=False)
            self._to_log(line)

    def result(self, document: dict[str, Any]) -> bool:
        """The JSON document of the command, on stdout; only with `as_json`. Returns whether it was written."""
        if self._gives_result:
            sys.stdout.write(json.dumps(encode(document), indent=2, allow_nan=False) + "\n")
            sys.stdout.flush()
        return self._gives_result

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _to_log(self, text: str) -> None:
        if self._log is None:
            return
        try:
            self._log.write(text + "\n")
            self._log.flush()
        except OSError as error:
            self._log = None
            self.console.print(f"warning: log.txt ends here: {error.strerror}", markup=False)
