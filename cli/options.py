"""Options that several commands share."""

import inspect
from typing import Annotated, Any, Literal

import typer

from cli.completion import complete_assignments, complete_config_files, complete_key, complete_presets, complete_runs
from shadowlab.settings import DEFAULT_PRESET, describe_key, preset_names

_TYPES = {"integer": int, "number": float, "true or false": bool}


def key_parameter(name: str, *, shows_default: bool) -> tuple[str, inspect.Parameter]:
    """The option of a configuration's key as the parameter of a command: None where it is not given.

    Args:
        shows_default: say in the help text that the preset's value holds otherwise.

    Returns:
        The parameter's name, and the parameter.
    """
    key = describe_key(name)
    assert key.marks.option is not None, name
    own = key.marks.option.partition("/")[0].strip("-").replace("-", "_")
    option = typer.Option(
        key.marks.option,
        help=key.first_sentence.replace("`", ""),
        show_default=THE_PRESETS if shows_default else False,
        autocompletion=complete_key(name),
    )
    kind: Any = _TYPES.get(key.type, str)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return own, inspect.Parameter(own, keyword, default=None, annotation=Annotated[kind | None, option])


def _presets_in_words() -> str:
    others = [name for name in preset_names() if name != DEFAULT_PRESET]
    return ", ".join([f"{DEFAULT_PRESET} (default)", *others])


THE_PRESETS = "the preset's"  # the default of an option that only overrides
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help=f"Preset: {_presets_in_words()}.", show_default=False, autocompletion=complete_presets
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="YAML file, or a preset's name.", autocompletion=complete_config_files
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of the configuration, as section.key=value; may be given again.",
        autocompletion=complete_assignments,
    ),
]
Run = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run folder below output_dir.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=complete_key("device"))]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; text goes to stderr.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print warnings, errors and the last line alone; log.txt has everything.")
]
Place = Annotated[
    str,
    typer.Argument(
        metavar="PLACE",
        help="A run (folder, name below runs/, or latest), a checkpoint's folder, a folder of shadowlab export, or the "
        "name of a model that ships.",
        autocompletion=complete_runs,
    ),
]
Weights = Annotated[
    Literal["ema", "raw"],
    typer.Option("--weights", metavar="KIND", help="ema: the average of the weights; raw: those of the last step."),
]
