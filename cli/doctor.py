"""Whether shadowlab can work here."""

import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from shadowlab.settings import Request

if TYPE_CHECKING:
    from shadowlab.doctor import Item

_INDENT = " " * 10


def doctor(
    request: Request,
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Train the tiny model a little: half a minute.")
    ] = True,
) -> None:
    """Look at this machine and try a little of everything; each problem comes with its fix. Exit 3 if one remains.

    Example:
    shadowlab doctor
    shadowlab doctor --preset sdxl-4xh100 --no-self-test
    """
    from shadowlab.doctor import examine

    colors = {"ok": "green", "note": "yellow", "failed": "red"}
    topics: list[str] = []

    def show(item: "Item") -> None:
        if item.topic not in topics:
            topics.append(item.topic)
            typer.secho(item.topic, bold=True, err=request.as_json)
        text = _fitted(item.text, request.as_json)
        typer.echo(f"  {typer.style(f'{item.state:<6}', fg=colors[item.state])}  {text}", err=request.as_json)
        if item.fix:
            typer.echo(f"{_INDENT}fix: {_fitted(item.fix, request.as_json)}", err=request.as_json)

    found = examine(
        request.config(), self_test=self_test, on_item=show, on_wait=lambda text: typer.echo(text, err=request.as_json)
    )
    failed = sum(item.state == "failed" for item in found.items)
    last = f"{failed} failed; each has its fix next to it" if failed else "everything is in order"
    typer.secho(f"doctor: {last} ({found.seconds:.0f} s)", bold=True, err=request.as_json)
    if request.as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    if not found.passed:
        raise typer.Exit(3)


def _fitted(text: str, is_on_stderr: bool) -> str:
    """Wrapped at words on a terminal, below the text of the first line; a word that is too long is left whole."""
    stream = sys.stderr if is_on_stderr else sys.stdout
    if not stream.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns) - len(_INDENT) - len("fix: ")
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"\n{_INDENT}".join(lines)
