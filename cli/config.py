"""The configuration: what it is, where each value came from, what may stand in it."""

import json

import typer

from shadowlab.settings import Request


def show(request: Request) -> None:
    """Print the whole configuration as YAML, each value with where it came from.

    What is printed may be saved as a file for --config.

    Example:
    shadowlab config show --preset sdxl --set train.batch_size=4
    shadowlab config show --config runs/NAME/config.yaml --json
    """
    from shadowlab.settings import format_origins

    resolved = request.resolved()
    if request.as_json:
        typer.echo(json.dumps(resolved.to_json(), indent=2))
    else:
        typer.echo(format_origins(resolved), nl=False)


def schema() -> None:
    """Print the JSON schema of configuration files, for editors: they complete, check and explain keys by it.

    Write `# yaml-language-server: $schema=shadowlab.schema.json` above a YAML file.

    Example: shadowlab config schema > shadowlab.schema.json
    """
    from shadowlab.settings import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
