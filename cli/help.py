"""The pages that -h prints: options, commands under headings, examples as they are typed."""

import inspect
import shutil
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_BOXES_NEED = 100  # columns; in less, tables in boxes cut the names of options off
_EXAMPLE = "\n\nExample:"
_WORDS = "shadowlab.words"


class Command(TyperCommand):
    """A command that ends its page with its examples, and shows flags without a type (`--json <bool>` looks as if it
    took a value)."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        return _flags_without_type(super().get_params(ctx))

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        if _is_narrow():
            self.rich_markup_mode = None
        super().format_help(ctx, formatter)  # boxes are printed at once, a plain page goes into `formatter`
        found = examples(self.callback)
        title = "Example:" if len(found) == 1 else "Examples:"
        formatter.write("\n".join(["", title, *(f"  {line}" for line in found), ""]) if found else "")


class Group(TyperGroup):
    """A group of commands whose flags are shown likewise, and whose headings a plain page has, too."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        return _flags_without_type(super().get_params(ctx))

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        if _is_narrow():
            self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Without words the page is printed, which the base class takes for the text of an error."""
        if ctx.parent is None:
            ctx.meta[_WORDS] = tuple(args)
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert command is not None
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append(
                (name, command.get_short_help_str(limit=300))
            )
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def add_command(
    group: typer.Typer, command: Callable[..., None], *, panel: str | None = None, takes_words: bool = False
) -> None:
    """Put a function into `group` under its own name; its docstring up to `Example:` is its help.

    Args:
        panel: heading on the page of `group` under which the command is listed.
        takes_words: all that follows its first argument belongs to that, options too.
    """
    text = inspect.cleandoc(command.__doc__ or "").partition(_EXAMPLE)[0]
    name = command.__name__.replace("_", "-")
    settings = {"allow_interspersed_args": False} if takes_words else None
    group.command(name, cls=Command, help=text, rich_help_panel=panel, context_settings=settings)(command)


def typed_words(context: typer.Context) -> tuple[str, ...]:
    """The words behind `shadowlab` of the command line that is being run."""
    words: tuple[str, ...] = context.meta[_WORDS]
    return words


def examples(command: Callable[..., Any] | None) -> list[str]:
    """The command lines behind `Example:` in a docstring."""
    text = inspect.cleandoc(getattr(command, "__doc__", None) or "").partition(_EXAMPLE)[2]
    return [line.strip() for line in text.strip().splitlines()]


def _is_narrow() -> bool:
    return shutil.get_terminal_size().columns < _BOXES_NEED


def _flags_without_type(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
