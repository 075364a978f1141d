"""log.txt of a run, which outlives the terminal, a disk that is full for a while, and its own removal."""

from collections.abc import Callable
from pathlib import Path

from diagnostics.files import append_to, reason_of


class LogFile:
    """Every text is appended to the file as it is then: one that was removed or moved away is begun again.

    Args:
        warn: called once where the disk refuses. What comes later is tried again.
    """

    def __init__(self, file: Path, warn: Callable[[str], None]) -> None:
        self._file, self._warn = file, warn
        self._refused = False

    def write(self, text: str) -> None:
        try:
            with append_to(self._file) as file:
                file.write(text.encode("utf-8", "replace"))
        except OSError as error:
            if not self._refused:
                self._refused = True
                self._warn(f"{self._file}: cannot be written ({reason_of(error)}); what follows is missing there")
        else:
            self._refused = False
