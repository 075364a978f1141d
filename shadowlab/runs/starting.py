"""What a run started from: the weights of an earlier one, kept in its own folder, so that the earlier one may go.

runs/NAME/start/{config.json, diffusion_pytorch_model.safetensors, empty_prompt.safetensors, start.json}
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diagnostics.files import create, open_file, read_json
from shadowlab.errors import UserError
from shadowlab.settings import START_FILE, Config

_FOLDER = "start"


@dataclass(frozen=True)
class Start:
    """Which weights they are."""

    run: str
    """Folder of the run, as it was found."""
    step: int | None
    """Of its checkpoint; None where it is not known."""
    weights: str
    """`ema`, `raw` or `exported`."""
    sha256: str
    """Of the file of weights."""

    @property
    def text(self) -> str:
        """In a line, for people."""
        words = {"ema": "averaged weights (EMA)", "raw": "weights", "exported": "weights as exported"}
        at = "" if self.step is None else f" at step {self.step}"
        return f"the {words.get(self.weights, 'weights')} of {self.run}{at} (SHA-256 {self.sha256[:12]})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def start_folder(run: Path) -> Path:
    """Where a run keeps what it started from."""
    return run / _FOLDER


def start_of(config: Config) -> Start | None:
    """What a run of this configuration started from; None where it was no other run.

    Raises:
        UserError: what is kept of it cannot be read.
    """
    file = Path(config.model.weights).expanduser() / START_FILE
    if not file.is_file():
        return None
    try:
        return Start(**read_json(file))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())[:120]}); copy it again") from error


def began_with(config: Config) -> dict[str, Any] | None:
    """`start_of` for a record."""
    found = start_of(config)
    return None if found is None else found.to_json()


def with_own_start(config: Config, run: Path) -> Config:
    """The configuration of a run that may have been moved, with what it started from where the run lies now."""
    own = start_folder(run)
    given = Path(config.model.weights)
    if given.name != _FOLDER or given.is_dir() or not (own / START_FILE).is_file():
        return config
    return with_weights(config, str(own))


def with_weights(config: Config, weights: str) -> Config:
    """The same configuration with other weights named in it."""
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": weights})})


def put(source: Path, target: Path) -> None:
    """A second name for a file that nobody writes into; a copy where the file system has none.

    Raises:
        OSError: the disk refuses.
    """
    try:
        os.link(source, target)
    except OSError:
        with open_file(source) as found, create(target) as made:
            shutil.copyfileobj(found, made, 2**24)
