"""One readable line and an exit code for every error a user can meet. Programming errors keep their traceback."""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import typer


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print the message of a known error and exit with its code: 1 check failed, 2 usage, 3 environment."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from diagnostics.nonfinite import NonFiniteError
        from shadowlab.errors import UserError

        try:
            command(*args, **kwargs)
        except (UserError, NonFiniteError) as error:
            typer.echo(f"error: {error}", err=True)
            if kwargs.get("as_json") and not getattr(error, "reported", False):
                sys.stdout.write(json.dumps({"passed": False, "error": str(error)}) + "\n")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None

    return wrapped
