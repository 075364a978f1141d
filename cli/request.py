"""The options that stages share, and how a command takes them."""

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

from cli.options import Assignments, ConfigFile, Json, Preset, Quiet, Run, key_parameter
from shadowlab.settings import Request

# Keys of the configuration that have an option in every command that takes a configuration.
_SHARED_KEYS = ("seed", "device", "precision", "allow_unsafe", "data.path", "model.weights")


def with_request(
    command: Callable[..., None], *, keys: Sequence[str] = (), without: Collection[str] = ()
) -> Callable[..., None]:
    """`command(request, ...)` as a function that Typer reads: a Request's options, then the command's own.

    Args:
        keys: keys of the configuration for which this command has an option, too.
        without: keys, and names of other options, that would be of no effect in this command.
    """
    options = {
        name: key_parameter(name, shows_default=name in keys) for name in (*_SHARED_KEYS, *keys) if name not in without
    }

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        of_config = {name: given.pop(parameter) for name, (parameter, _) in options.items()}
        own = {name: given.pop(name) for name in own_parameters}
        request = _request(of_config, **given)
        request.config()  # a wrong one is refused here, before the command imports torch
        try:
            with request.naming_origins():
                command(request, **own)
        except RuntimeError as error:
            error.config = request.config()  # type: ignore[attr-defined]  # what to try depends on it
            raise

    general = {name: one for name, one in inspect.signature(_request).parameters.items() if name not in without}
    del general["options"]
    own_parameters = dict(list(inspect.signature(command).parameters.items())[1:])
    last = [general.pop(name) for name in ("quiet", "as_json") if name in general]
    parameters = [*general.values(), *(one for _, one in options.values()), *own_parameters.values(), *last]
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    wrapped.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in keywords}
    return wrapped


def _request(
    options: dict[str, Any],
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    run: Run = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> Request:
    return Request(preset, config, options, tuple(assignments or ()), run, as_json, quiet)
