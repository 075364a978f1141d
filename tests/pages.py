"""What the pages of the documentation show: commands, their output, Python and YAML; and how outputs are compared."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    page: str
    """Relative to the project's folder."""
    line: int
    kind: str
    """What stands behind the opening fence: `sh`, `console`, `python`, `yaml`, `text` or nothing."""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    place: str
    words: str
    """The command as typed, without its comment."""
    output: str | None
    """What the page says it prints; None in an `sh` block."""


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    return [
        Block(name, text.count("\n", 0, found.start()) + 1, found["kind"], textwrap.dedent(found["text"]))
        for found in _FENCE.finditer(text)
    ]


def commands(page: Path) -> list[Command]:
    """In the order of the page."""
    return [command for block in blocks(page) for command in _commands(block)]


def _commands(block: Block) -> Iterator[Command]:
    if block.kind == "sh":
        for line in block.text.replace("\\\n", " ").splitlines():
            if words := line.split("  #")[0].strip():
                yield Command(block.place, words, None)
    elif block.kind == "console":
        first, *rest = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        assert not first, f"{block.place}: a console block begins with `$ `"
        for one in rest:
            words, _, output = one.partition("\n")
            yield Command(block.place, words.strip(), output)


def inline_commands(page: Path) -> list[str]:
    """`shadowlab ...` in running text, as typed."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [found for found in re.findall(r"`([^`\n]+)`", text) if found.startswith("shadowlab ")]


def named_files(page: Path) -> list[str]:
    """Paths and names of files, and paths of folders, that running text names in code."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md)|(?:shadowlab|diagnostics|cli|tests|scripts)/[\w/-]*)`", text)


def words_of(command: str) -> list[str]:
    """Without assignments of environment variables in front."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    return words


def shape(line: str) -> str:
    """A line without what another machine, day or number of steps changes: numbers, speed, curves, names of runs."""
    line = re.sub(r"(\d s)(?:  [\d.]+ (?:steps/s|s/step))?(?:  [\d a-z]+ left)?$", r"\1", line)
    line = re.sub(r"\S*/(?=(?:shadowlab|diagnostics)/\S+\.py)", "", line)
    line = re.sub(r"\b[\w-]*\d{8}T\d{6}Z[\w-]*", "RUN", line)
    line = re.sub(r"\b(?:[a-z_]\w*\.)+[\w.]*[a-z_]\w*\b", "MODULE", line)  # down_blocks.1.resnets.0.conv1
    line = re.sub(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)", "#", line)
    line = re.sub(r"\b(?:tiny|sdxl)\b", "PRESET", line)
    line = re.sub(r"-{3,}", "---", line)  # under headings, as wide as the widest number
    line = re.sub(r"[▁▂▃▄▅▆▇█]+", "~", line)
    return " ".join(line.split())


def missing(shown: str, printed: str) -> list[str]:
    """Lines of `shown` that `printed` does not have, in this order, by their shape. A line `...` leaves some out."""
    found, lines = 0, [shape(line) for line in printed.splitlines()]
    absent = []
    for line in shown.splitlines():
        if not line.strip() or line.strip() == "...":
            continue
        wanted = shape(line.removesuffix("..."))
        at = next((i for i in range(found, len(lines)) if _agrees(wanted, lines[i], line.endswith("..."))), None)
        if at is None:
            absent.append(line)
        else:
            found = at
    return absent


def _agrees(wanted: str, line: str, is_beginning: bool) -> bool:
    return line.startswith(wanted) if is_beginning else line == wanted


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)#]+)\)", _FENCE.sub("", page.read_text(encoding="utf-8")))
