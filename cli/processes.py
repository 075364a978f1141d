"""`--processes N`: a command whose work several processes share."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cli.help import typed_words

Processes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes of this machine that share the work; on several machines start them with torchrun.",
        show_default="1",
    ),
]


def in_processes(
    command: Callable[..., None], *, device: str | None = None, kept: str | None = None
) -> Callable[..., None]:
    """`command` with the option --processes: so many processes are started with the words that were typed.

    In each of them, or where torchrun or SLURM has started them, or where there is one, `command` itself runs. A
    Request, if it takes one, or its own option --device, says on what device. Ctrl-C and SIGTERM end it at once, and
    say that what is done is kept.

    Args:
        device: that it computes on, whatever a Request says.
        kept: what is said then in place of that.
    """

    @functools.wraps(command)
    def wrapped(*request: Any, context: typer.Context, processes: int | None, **own: Any) -> None:
        from shadowlab.distributed import WORK_IS_KEPT, launch_if_asked

        own_device = own.get("device", "cpu") or "auto"
        on = device or (request[0].config().device if request else own_device)
        stays = kept or WORK_IS_KEPT
        code = launch_if_asked(processes, "cli.main", typed_words(context), device=on, kept=stays)
        if code is None:
            _here(functools.partial(command, *request, **own), stays)
        elif code:
            raise typer.Exit(code)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = list(inspect.signature(command).parameters.values())
    last = [parameters.pop()] if parameters and parameters[-1].name == "as_json" else []
    added = [
        inspect.Parameter("processes", keyword, default=None, annotation=Processes),
        inspect.Parameter("context", keyword, annotation=typer.Context),
    ]
    taken = [*parameters, *(one.replace(kind=keyword) for one in (*added, *last))]
    wrapped.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in taken}
    return wrapped


def _here(command: Callable[[], None], kept: str) -> None:
    from shadowlab.distributed import launched_by_us
    from shadowlab.errors import InterruptedRunError
    from shadowlab.interruption import signals

    try:
        with signals.unmasked():
            command()
    except (KeyboardInterrupt, InterruptedRunError) as stop:
        stopped = InterruptedRunError(str(stop) or f"interrupted: {kept}")
        stopped.printed = launched_by_us()  # then the launcher says it
        raise stopped from None
