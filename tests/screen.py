"""What a terminal shows of a stream of text and cursor movements."""

import io
import re

from rich.console import Console

_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", re.DOTALL)


def terminal(width: int, **options: object) -> Console:
    """A console that takes a string for a terminal; no colours. As the Reporter's: nothing is cropped."""
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system=None,
        width=width,
        height=40,
        soft_wrap=True,
        highlight=False,
        legacy_windows=False,
        _environ={"TERM": "xterm"},
        **options,  # type: ignore[arg-type]
    )


def screen(console: Console) -> list[str]:
    """The lines on the screen now; knows the movements that a live view makes."""
    assert isinstance(console.file, io.StringIO)
    lines, row, column = [""], 0, 0
    for argument, code, character in _PIECE.findall(console.file.getvalue()):
        if code == "A":
            row = max(0, row - int(argument or 1))
        elif code == "K":
            lines[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n" or (character and column == console.width):
            row, column = row + 1, 0
        if character not in ("", "\r", "\n"):
            lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]
