"""One readable line and an exit code for every error a user can meet. Programming errors keep their traceback."""

import functools
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import typer


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print the message of a known error and exit: 1 check failed, 2 usage, 3 environment, 130 interrupted.

    A run that was interrupted and saved all it did has not failed: 0.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from shadowlab.errors import InterruptedRunError, UserError
        from shadowlab.interruption import signals

        as_json = bool(kwargs.get("as_json"))
        try:
            with signals.unmasked():
                command(*args, **kwargs)
        except UserError as error:
            if _is_first() or not error.shared:
                _print(f"error: {error}", as_json=as_json and not error.reported, aloud=not error.printed)
            raise typer.Exit(error.exit_code) from None
        except (KeyboardInterrupt, InterruptedRunError) as stop:
            if _is_first() and not getattr(stop, "printed", False):  # every process was asked to stop
                _print(str(stop) or "interrupted", as_json=as_json)
            raise typer.Exit(0 if getattr(stop, "saved", False) else InterruptedRunError.exit_code) from None
        except Exception as error:
            message, code = _of_torch(error)
            if message:
                _print(f"error: {message}", as_json=as_json)
            raise typer.Exit(code) from None

    return wrapped


def _of_torch(error: Exception) -> tuple[str, int]:
    """Message and exit code of an error that a running stage can meet; any other is raised again. No message where
    another process has it.

    Imported here: a wrong option must not wait for torch.
    """
    if "torch" in sys.modules:
        import torch

        from diagnostics import NonFiniteError
        from shadowlab.launched import LAUNCHER

        if isinstance(error, NonFiniteError):
            is_of_this_rank = error.verdict.rank in (None, int(os.environ.get("RANK", "0")))
            return str(error) if is_of_this_rank else "", 1
        if isinstance(error, RuntimeError) and _is_lost_connection(error):
            if LAUNCHER in os.environ:
                return "", 3  # our launcher names the process
            return f"another process of this run was lost ({_first_line(error)}); the launcher names it", 3
        if isinstance(error, torch.OutOfMemoryError):
            return f"out of memory ({str(error).split('.')[0]}); {_less_memory(error)}", 3
        if "torch._dynamo" in sys.modules and isinstance(error, torch._dynamo.exc.TorchDynamoException):
            return f"model.compile: torch.compile failed ({_first_line(error)}); set model.compile=false", 3
    raise error


def _less_memory(error: Exception) -> str:
    """What takes less memory and is not in the configuration already."""
    from shadowlab.settings import Config

    config = getattr(error, "config", None)
    section = "overfit" if sys.argv[1:2] == ["overfit"] else "train"
    found = []
    if not isinstance(config, Config) or getattr(config, section).batch_size > 1:
        found.append(f"a smaller --set {section}.batch_size=N")
    if not isinstance(config, Config) or not config.model.gradient_checkpointing:
        found.append("--set model.gradient_checkpointing=true")
    if isinstance(config, Config) and len(found) < 2:
        found.append("a smaller --set data.image_size=N")
    return f"use {' or '.join(found)}; shadowlab plan says what it would take"


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective ended because a peer is gone; backends say so in words alone."""
    import torch

    if "RANK" not in os.environ:
        return False
    words = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket timeout", "remote process")
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistBackendError) or any(word in text for word in words)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()


def _is_first() -> bool:
    """Whether this is the only process, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def run_reporting_usage(app: typer.Typer) -> None:
    """Run `app`; a wrong option or value is one line, too, and one JSON document with --json."""
    threading.excepthook = _leave_to_the_main_thread
    try:
        code = app(standalone_mode=False)
    except _USAGE_ERRORS as error:
        _print(f"error: {' '.join(error.format_message().split())}", as_json="--json" in sys.argv)
        sys.exit(2)
    except typer.Abort:
        _print("interrupted", as_json="--json" in sys.argv)
        sys.exit(130)
    sys.exit(code or 0)


def _leave_to_the_main_thread(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread meets a full disk first, and its writer raises the same error again where it is called."""
    if type(failure.thread).__name__ != "_AsyncWriterThread" or not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


# Typer carries its own copy of click, whose base of all usage errors has no public name.
_USAGE_ERRORS: Any = typer.BadParameter.__mro__[2]


def _print(text: str, *, as_json: bool, aloud: bool = True) -> None:
    from shadowlab.plain_text import plain_text

    if aloud:
        text = plain_text(text)
        with suppress(OSError):  # nobody can read it; the exit code says it
            typer.echo(text, err=True)
    if as_json and _is_first():
        sys.stdout.write(json.dumps({"passed": False, "error": text.removeprefix("error: ")}) + "\n")
