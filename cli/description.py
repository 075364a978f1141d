"""The commands as data, for the documentation."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CommandDescription:
    """All that `shadowlab COMMAND -h` says."""

    name: str
    """`data check`"""
    panel: str
    """The heading under which `shadowlab -h` lists it, or its group."""
    text: str
    examples: tuple[str, ...]
    """Whole command lines."""
    parameters: tuple[tuple[str, str], ...]
    """`--max-steps <int>` and what it means; arguments come first."""


def describe_commands() -> list[CommandDescription]:
    """Every command, in the order of `shadowlab -h`."""
    from typer.main import get_command

    from cli.commands import app

    found = list(_described(get_command(app), "", ""))
    panels = list(dict.fromkeys(command.panel for command in found))
    return sorted(found, key=lambda command: panels.index(command.panel))


def _described(command: Any, name: str, panel: str) -> Iterator[CommandDescription]:
    from cli.help import examples

    if hasattr(command, "commands"):
        for own, inner in command.commands.items():
            yield from _described(inner, f"{name} {own}".strip(), panel or inner.rich_help_panel)
        return
    text, shown = inspect.cleandoc(command.help or ""), tuple(examples(command.callback))
    yield CommandDescription(name, panel, text, shown, tuple(_parameters(command)))


def _parameters(command: Any) -> Iterator[tuple[str, str]]:
    from typer import Context

    arguments = [one for one in command.params if one.param_type_name == "argument"]
    for one in arguments:
        yield one.metavar or one.name.upper(), " ".join((one.help or "").split())
    for one in command.params:
        if one not in arguments and (record := one.get_help_record(Context(command))):
            yield record
