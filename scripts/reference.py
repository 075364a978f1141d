"""Writes the parts of docs/ that are made from the code: keys, commands, rooms.

    python -m scripts.reference

A part stands between `<!-- made: NAME -->` and `<!-- /made -->`. A test holds the
pages to the code.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from cli import describe_commands
from diagnostics import CONTRACTS
from shadowlab.settings import (
    DEFAULT_PRESET,
    KeyDescription,
    describe_keys,
    describe_sections,
    load_config,
    preset_names,
    values,
)
from shadowlab.tasks import task_class
from tests.house import HALLS, House, room

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_PART = re.compile(r"(<!-- made: ([\w-]+) -->\n).*?(<!-- /made -->)", re.DOTALL)


def main() -> None:
    for page, text in made_pages().items():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"{page.name}: written")


@cache
def made_pages() -> dict[Path, str]:
    """Every page with a made part, as it should be."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
    return {page: _PART.sub(_made, text) for page, text in pages.items() if _PART.search(text)}


def _made(part: re.Match[str]) -> str:
    return "\n".join([part[1], *PARTS[part[2]](), "", part[3]])


def _keys() -> Iterator[str]:
    """A section a heading, a key a row."""
    sections = {"": "Outside sections.", **describe_sections()}
    for section, text in sections.items():
        yield from ("", f"### {section}" if section else "### Top level", "", text, "")
        rows = [_key_row(key, section) for key in describe_keys() if key.section == section]
        yield from _table(("key", "type", "default", "meaning", "decides"), rows)


def _key_row(key: KeyDescription, section: str = "") -> list[str]:
    limits = f", {key.limits}" if key.limits else ""
    option = f" Option: `{key.marks.option}`." if key.marks.option else ""
    examples = f" For example {', '.join(f'`{_yaml(one)}`' for one in key.examples)}." if key.examples else ""
    name = key.name.removeprefix(f"{section}.")
    return [f"`{name}`", key.type + limits, f"`{_yaml(key.default)}`", key.text + examples + option, key.marks.decides]


def _task_options() -> Iterator[str]:
    """The options of each folder below shadowlab/tasks/ that holds a task."""
    for file in sorted((ROOT / "shadowlab" / "tasks").glob("*/task.py")):
        keys = describe_keys(task_class(file.parent.name).options())
        yield from ("", f"### {file.parent.name}", "")
        yield from _table(("key", "type", "default", "meaning", "decides"), map(_key_row, keys))


def _presets() -> Iterator[str]:
    """What the presets say, where they say something."""
    default = {key.name: key.default for key in describe_keys()}
    names = sorted(preset_names(), key=lambda name: name != DEFAULT_PRESET)
    by_preset = {name: values(load_config(preset=name, options={"allow_unsafe": True})) for name in names}
    keys = dict.fromkeys([*default, *(key for given in by_preset.values() for key in given)])  # and a task's options
    differing = [
        key for key in keys if any(given.get(key) not in (None, default.get(key)) for given in by_preset.values())
    ]
    rows = [
        [f"`{key}`", *(_cell(by_preset[name].get(key), default.get(key)) for name in names)]
        for key in differing
        if key != "allow_unsafe"
    ]
    yield from _table(("key", *(f"`{name}`" for name in names)), rows)


def _cell(value: Any, default: Any) -> str:
    return f"`{_yaml(value)}`" if value not in (None, default) else ""


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _commands() -> Iterator[str]:
    """The panels of `shadowlab --help` as headings, below them a command each with an option a row."""
    for panel, commands in groupby(describe_commands(), lambda command: command.panel):
        yield from ("", f"## {panel}")
        for command in commands:
            yield from ("", f"### {command.name}", "", command.text, "")
            yield from ("```text", *command.examples, "```", "")
            rows = [[f"`{name}`", text] for name, text in command.parameters]
            yield from _table(("argument or option", "meaning"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _line(head)
    yield _line(["---"] * len(head))
    yield from map(_line, rows)


def _line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _rooms() -> Iterator[str]:
    """Every room of the two packages, those above that stand on those below."""
    for package in ("shadowlab", "diagnostics"):
        house = House.read(ROOT, package)
        below = _rooms_below(house, package)
        height = {name: _height(name, below) for name in below}
        yield from ("", f"### {package}", "")
        rows = [[str(height[name]), f"`{name}`", _first_sentence(house, name)] for name in _downwards(height)]
        yield from _table(("floor", "room", "what is there"), rows)


def _rooms_below(house: House, package: str) -> dict[str, set[str]]:
    """Room -> those of the same package that it imports."""
    below: dict[str, set[str]] = {room(name): set() for name in house.modules if name not in HALLS and name != package}
    for one in house.imports:
        own, other = room(one.module), room(one.target)
        if own in below and other in below and own != other:
            below[own].add(other)
    return below


def _height(name: str, below: Mapping[str, set[str]]) -> int:
    """0 for what imports nothing of its package, else one more than the highest below."""
    return max((_height(other, below) + 1 for other in below[name]), default=0)


def _downwards(height: Mapping[str, int]) -> list[str]:
    return sorted(height, key=lambda name: (-height[name], name))


def _first_sentence(house: House, name: str) -> str:
    text = ast.get_docstring(house.trees[house.modules[name]]) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _contracts() -> Iterator[str]:
    """What a watched step must keep, a contract a row."""
    rows = [[f"`{c.name}`", c.severity, f"{c.threshold}.", c.advice, c.source] for c in CONTRACTS.values()]
    yield from _table(("contract", "severity", "it is broken when", "fix", "source"), rows)


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "keys": _keys,
    "presets": _presets,
    "commands": _commands,
    "rooms": _rooms,
    "contracts": _contracts,
    "task-options": _task_options,
}

if __name__ == "__main__":
    main()
