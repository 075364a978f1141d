"""The pages of -h: of every command, at once, and readable in a narrow terminal."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.help import examples
from cli.main import app
from tests import warm

ROOT: Any = typer.main.get_command(app)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Words and command of all that can be run."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(ROOT))
PAGES = [(), ("data",), ("bench",), ("config",), *COMMANDS]


def page(*words: str, columns: int, flag: str | None = "-h", code: int = 0) -> str:
    """What is printed in a terminal of that width. Typer's own test runner always has 80 columns."""
    written = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(written):
        patch.setenv("COLUMNS", str(columns))
        assert ROOT.main([*words, *([flag] if flag else [])], prog_name="shadowlab", standalone_mode=False) == code
    return written.getvalue()


def parsed(words: list[str]) -> Any:
    """The command that a line names, after its options were read; nothing is run."""
    command, name, context = ROOT, "shadowlab", None
    while True:
        context = command.make_context(name, words, parent=context)
        if not hasattr(command, "commands"):
            return command
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_that_parses(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    lines = examples(command.callback)
    assert lines
    for line in lines:
        assert line in page(*words, columns=60)
        assert line in page(*words, columns=140)
        program, *rest = line.partition(" > ")[0].split()
        assert program == "shadowlab"
        assert parsed(rest) is command, line
    assert "Example:" not in command.help


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
@pytest.mark.parametrize("columns", [60, 80, 100])
def test_no_option_and_no_command_is_cut_off(words: tuple[str, ...], columns: int) -> None:
    text = page(*words, columns=columns)
    assert "…" not in text
    assert max(map(len, text.split("Example")[0].splitlines())) <= columns
    command = parsed_group(words)
    names = [option for one in command.params for option in (*one.opts, *one.secondary_opts) if option.startswith("-")]
    for name in (*names, *getattr(command, "commands", ())):
        assert name in text


def parsed_group(words: tuple[str, ...]) -> Any:
    command = ROOT
    for word in words:
        command = command.commands[word]
    return command


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_both_flags_print_the_same(words: tuple[str, ...]) -> None:
    assert page(*words, columns=60, flag="--help") == page(*words, columns=60)


@pytest.mark.parametrize("columns", [60, 120])
@pytest.mark.parametrize("words", [(), ("config",), ("data",), ("bench",)])
def test_a_group_without_a_command_prints_its_page(words: tuple[str, ...], columns: int) -> None:
    assert page(*words, columns=columns, flag=None, code=2) == page(*words, columns=columns)


@pytest.mark.parametrize("columns", [60, 120])
def test_commands_stand_under_headings_in_the_order_of_need(columns: int) -> None:
    text = page(columns=columns)
    order = ["Before the first run", "doctor", "Train", "check-forward", "overfit", "Look at a run", "tensorboard"]
    order += ["Find where NaN", "why", "Data and autoencoder", "This project"]
    places = [text.index(f" {word}" if word.islower() else word) for word in order]
    assert places == sorted(places)


@pytest.mark.parametrize("words", [["-h"], ["train", "-h"], ["health", "-h"], ["config", "show"], ["config", "schema"]])
def test_help_and_configuration_do_not_wait_for_torch(words: list[str]) -> None:
    script = (
        "import sys; from cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'diffusers', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", script, *words]
    done = warm.run(words, kind=warm.LightProcess, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
