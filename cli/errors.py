"""One readable line and an exit code for every error a user can meet. Programming errors keep their traceback."""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import typer


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print the message of a known error and exit: 1 check failed, 2 usage, 3 environment, 130 interrupted."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from shadowlab.errors import InterruptedRunError, UserError

        as_json = bool(kwargs.get("as_json"))
        try:
            command(*args, **kwargs)
        except UserError as error:
            _print(f"error: {error}", as_json=as_json and not error.reported)
            raise typer.Exit(error.exit_code) from None
        except (KeyboardInterrupt, InterruptedRunError) as stop:
            if os.environ.get("RANK", "0") == "0":  # every process was told to stop
                _print(str(stop) or "interrupted", as_json=as_json)
            raise typer.Exit(130) from None
        except Exception as error:
            message, code = _of_torch(error)
            _print(f"error: {message}", as_json=as_json)
            raise typer.Exit(code) from None

    return wrapped


def _of_torch(error: Exception) -> tuple[str, int]:
    """Message and exit code of an error that a running stage can meet; any other is raised again.

    Imported here: a wrong option must not wait for torch.
    """
    if "torch" in sys.modules:
        import torch

        from diagnostics.nonfinite import NonFiniteError

        if isinstance(error, NonFiniteError):
            return str(error), error.exit_code
        if isinstance(error, torch.OutOfMemoryError):
            mend = "use a smaller train.batch_size or model.gradient_checkpointing=true"
            return f"out of memory ({str(error).split('.')[0]}); {mend}", 3
    raise error


def run_reporting_usage(app: typer.Typer) -> None:
    """Run `app`; a wrong option or value is one line, too, and one JSON document with --json."""
    try:
        code = app(standalone_mode=False)
    except _USAGE_ERRORS as error:
        message = error.format_message() or "no command given; see shadowlab --help"
        _print(f"error: {' '.join(message.split())}", as_json="--json" in sys.argv)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    sys.exit(code or 0)


# Typer carries its own copy of click, whose base of all usage errors has no public name.
_USAGE_ERRORS: Any = typer.BadParameter.__mro__[2]


def _print(text: str, *, as_json: bool) -> None:
    typer.echo(text, err=True)
    if as_json and os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps({"passed": False, "error": text.removeprefix("error: ")}) + "\n")
