"""The text of a host's loop, with and without what the watch adds to it."""

import re

_ADDED = re.compile(r"# added$")
_WAS = re.compile(r"^( *).*# was: (.*)$")


def num_added(text: str) -> int:
    """Lines that the watch adds or changes."""
    return sum(bool(_ADDED.search(line) or _WAS.match(line)) for line in text.splitlines())


def bare(text: str) -> str:
    """The loop as it was: marked lines are taken out or put back, and what stood below a block of theirs moves left."""
    found: list[str] = []
    removed: list[int] = []  # indents of the blocks that were opened by lines taken out
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip():
            while removed and indent <= removed[-1]:
                removed.pop()
        if _ADDED.search(line):
            if _opens_block(line):
                removed.append(indent)
            continue
        replaced = _WAS.match(line)
        if replaced:
            line = replaced[1] + replaced[2]
        found.append(line[4 * len(removed) :] if line.strip() else line)
    return "\n".join(found) + "\n"


def _opens_block(line: str) -> bool:
    return line.partition("  #")[0].rstrip().endswith(":")
