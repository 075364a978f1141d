"""Options and command classes that several commands share."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose flags are shown without a type: `--json <bool>` looks as if it took a value."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        return _flags_without_type(super().get_params(ctx))


class Group(TyperGroup):
    """The same for a group of commands."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        return _flags_without_type(super().get_params(ctx))


def _flags_without_type(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


THE_PRESETS = "the preset's"  # the default of an option that only overrides
Preset = Annotated[str | None, typer.Option(help="Preset: tiny (default), sdxl, sdxl-4xh100.", show_default=False)]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file, or a preset's name.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be given again.")]
Run = Annotated[str | None, typer.Option(help="Name of the run folder below output_dir.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all randomness.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; text goes to stderr.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print warnings, errors and the last line alone; log.txt has everything.")
]
Precision = Annotated[str | None, typer.Option(help="fp32, tf32, bf16, fp16 or fp16-pure.")]
Unsafe = Annotated[bool, typer.Option("--allow-unsafe", help="Permit fp16-pure.")]
Data = Annotated[str | None, typer.Option(help="Data set: a folder, a tar, or `embedded`.")]
Weights = Annotated[str | None, typer.Option(help="`random`, a folder in diffusers' layout, or a hub id.")]
