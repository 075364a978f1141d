"""Sentences that fit the width they are printed in."""

import re

from rich.cells import cell_len

_LABEL = re.compile(r" *(?:\S+ {2,})?")  # `  cause     ` of a list of labels and texts
_COMMAND = re.compile(r"\b(shadowlab|pip|python|export|apt(-get)?) |(^|\s)--\w")


def wrapped_text(text: str, width: int, *, indent: str = "", hang: str | None = None) -> str:
    """Sentences wrapped at words.

    Args:
        width: columns of the longest line.
        indent: before the first line. hang: before each later one; by default as `indent`.
    """
    lines: list[str] = []
    later = indent if hang is None else hang
    line, start = "", indent
    for word in text.split():
        if line and cell_len(start) + cell_len(line) + 1 + cell_len(word) > width:
            lines.append(start + line)
            line, start = "", later
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, start + line])


def fitted_text(text: str, width: int) -> str:
    """Each line wrapped at words, later ones below the text of the first.

    A line with a command, with a word that is longer than the line, or with figures set apart by two spaces is left to
    the terminal, which folds it so that it can still be copied as one.
    """
    lines = []
    for line in text.split("\n"):
        found = _LABEL.match(line)
        label = found[0] if found and cell_len(found[0]) < width // 3 else ""
        rest = line[len(label) :]
        room = width - cell_len(label)
        copied = "  " in rest or _COMMAND.search(line) or any(cell_len(word) > room for word in rest.split())
        if cell_len(line) <= width or copied:
            lines.append(line)
        else:
            lines.append(wrapped_text(rest, width, indent=label, hang=" " * cell_len(label)))
    return "\n".join(lines)
