"""The options that stages share, and how a stage begins and ends."""

import functools
import inspect
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.options import Assignments, ConfigFile, Json, Preset, Quiet, Run, key_parameter
from shadowlab.settings import DEFAULT_PRESET, Config, ResolvedConfig, resolve_config

if TYPE_CHECKING:
    from shadowlab.console import Reporter
    from shadowlab.distributed import Processes
    from shadowlab.runs import RunFolder
    from shadowlab.session import Session
    from shadowlab.stages.result import StageResult


# Keys of the configuration that have an option in every command that takes a configuration.
_SHARED_KEYS = ("seed", "device", "precision", "allow_unsafe", "data.path", "model.weights")


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    preset: str | None
    config_file: str | None
    options: dict[str, Any]
    """Dotted key of the configuration to value, or None where the option was not given."""
    assignments: list[str]
    """The texts after each --set."""
    run: str | None
    as_json: bool
    quiet: bool = False

    @property
    def label(self) -> str:
        """Preset or file name, for the run's name."""
        return self.preset or (Path(self.config_file).stem if self.config_file else DEFAULT_PRESET)

    @property
    def is_default(self) -> bool:
        """Whether neither preset nor file was named."""
        return self.preset is None and self.config_file is None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {key: value for key, value in self.options.items() if value is not None}

    def words(self) -> list[str]:
        """Arguments that make the same request, but for the run's name."""
        words = ["--preset", self.preset] if self.preset else []
        words += ["--config", self.config_file] if self.config_file else []
        assignments = [f"{key}={json.dumps(value)}" for key, value in self.given.items()]
        for assignment in [*assignments, *self.assignments]:
            words += ["--set", assignment]
        words += ["--quiet"] if self.quiet else []
        return [*words, *(["--json"] if self.as_json else [])]

    def config(self) -> Config:
        return self.resolved().config

    def resolved(self) -> ResolvedConfig:
        """The configuration, with where each value came from."""
        return resolve_config(
            preset=self.preset, file=self.config_file, options=self.given, assignments=self.assignments
        )


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
        command(_request(of_config, **given), **own)

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
    return Request(preset, config, options, assignments or [], run, as_json, quiet)


def start(config: Config, request: Request, resumed: "RunFolder | None" = None) -> "tuple[Processes, Reporter]":
    """Processes and voice of a stage; the first line says what runs."""
    from shadowlab.console import Reporter
    from shadowlab.distributed import Processes
    from shadowlab.models import POLICIES

    processes = Processes(config.device, config.distributed)
    POLICIES[config.precision].apply_to_backend(processes.device)  # an impossible one fails before any work
    reporter = Reporter(as_json=request.as_json, active=processes.is_main, quiet=request.quiet)
    if resumed is not None:
        reporter.say(f"resuming {resumed.path} with its own config.yaml and the options given now")
    elif request.is_default:
        reporter.say("preset tiny: SDXL's topology in small, on a CPU, without network; the real model: --preset sdxl")
    if processes.device.type == "cpu" and config.precision != "fp32":
        reporter.warn(
            f"--precision {config.precision} on a CPU is several times slower than fp32; good for its numerics alone"
        )
    return processes, reporter


def run_stage(
    name: str,
    request: Request,
    config: Config,
    stage: "Callable[[Session], StageResult]",
) -> None:
    """Run a stage of one process in a run folder of its own."""
    from shadowlab.runs import RunFolder, default_name
    from shadowlab.session import Session
    from shadowlab.stages.run import finish_stage
    from shadowlab.tasks import open_task

    task = open_task(config)  # an option that it has not fails before any work
    processes, reporter = start(config, request)
    try:
        processes.require_single(name)
        if request.run is None:
            run = RunFolder.create_beside(config, default_name(request.label, name), source=request.label)
        else:
            run = RunFolder.create(config, request.run, source=request.label)
        with run.claim():
            finish_stage(name, Session(config, run, processes, reporter, task), stage)
    finally:
        reporter.close()
        processes.close()
