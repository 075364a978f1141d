"""One readable line and an exit code for every error a user can meet. Programming errors keep their traceback."""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import typer


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print the message of a known error and exit with its code: 1 check failed, 2 usage, 3 environment."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        import torch

        from diagnostics.nonfinite import NonFiniteError
        from shadowlab.errors import UserError

        try:
            command(*args, **kwargs)
        except (UserError, NonFiniteError) as error:
            _print(str(error), as_json=bool(kwargs.get("as_json")) and not getattr(error, "reported", False))
            raise typer.Exit(error.exit_code) from None
        except torch.OutOfMemoryError as error:
            mend = "use a smaller train.batch_size or model.gradient_checkpointing=true"
            _print(f"out of memory ({str(error).split('.')[0]}); {mend}", as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(3) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None

    return wrapped


def run_reporting_usage(app: typer.Typer) -> None:
    """Run `app`; a wrong option or value is one line, too, and one JSON document with --json."""
    try:
        code = app(standalone_mode=False)
    except _USAGE_ERRORS as error:
        message = error.format_message() or "no command given; see shadowlab --help"
        _print(" ".join(message.split()), as_json="--json" in sys.argv)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    sys.exit(code or 0)


# Typer carries its own copy of click, whose base of all usage errors has no public name.
_USAGE_ERRORS: Any = typer.BadParameter.__mro__[2]


def _print(message: str, *, as_json: bool) -> None:
    typer.echo(f"error: {message}", err=True)
    if as_json and os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps({"passed": False, "error": message}) + "\n")
