"""What a command line asked for, as far as it concerns the configuration and the run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowlab.errors import TaskOptionError
from shadowlab.settings.files import DEFAULT_PRESET, ResolvedConfig, resolve_config
from shadowlab.settings.schema import Config


@dataclass(frozen=True)
class Request:
    """The options that every stage takes."""

    preset: str | None = None
    config_file: str | None = None
    options: dict[str, Any] | None = None
    """Dotted key of the configuration to value, or to None where the option was not given."""
    assignments: tuple[str, ...] = ()
    """The texts after each --set."""
    run: str | None = None
    """Name of the run folder, if one was given."""
    as_json: bool = False
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
        return {key: value for key, value in (self.options or {}).items() if value is not None}

    def words(self) -> list[str]:
        """Arguments that make the same request, except for the run's name."""
        words = ["--preset", self.preset] if self.preset else []
        words += ["--config", self.config_file] if self.config_file else []
        assignments = [f"{key}={json.dumps(value)}" for key, value in self.given.items()]
        for assignment in [*assignments, *self.assignments]:
            words += ["--set", assignment]
        words += ["--quiet"] if self.quiet else []
        return [*words, *(["--json"] if self.as_json else [])]

    def config(self) -> Config:
        """Raises UserError as `load_config`."""
        return self.resolved().config

    @contextmanager
    def naming_origins(self) -> Iterator[None]:
        """Inside, an option that the task refuses is an error that names the file or the argument it came from."""
        try:
            yield
        except TaskOptionError as error:
            error.args = (f"{self.resolved().origin_of(error.key)}: {error}",)
            raise

    def resolved(self) -> ResolvedConfig:
        """The configuration, with where each value came from. Raises UserError as `load_config`."""
        return resolve_config(
            preset=self.preset, file=self.config_file, options=self.given, assignments=self.assignments
        )
