"""The folder of a run: what is in it, when it may be used again, and what its stages proved.

runs/NAME/{config.yaml, environment.json, stages.json, metrics.jsonl, log.txt,
           tensorboard/, checkpoints/, samples/, incidents/, reports/}
"""

import errno
import fcntl
import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from diagnostics.records import encode
from shadowlab import __version__
from shadowlab.errors import UserError
from shadowlab.runs.environment import environment
from shadowlab.settings import Config, dump_config, load_config

SUBFOLDERS = ("tensorboard", "checkpoints", "samples", "incidents", "reports")
MAX_NAME = 150  # characters; file systems take 255, and required stages append theirs
_MAX_LABEL = 100
LOCK = ".lock"
LATEST = "latest"
"""What a user calls the newest run by."""

# What stage_passed and --resume read of an entry of stages.json.
_ENTRY = {"passed": bool, "model_hash": str, "finished": str, "summary": dict}


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Made by `create` or `reopen`."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @classmethod
    def create(cls, config: Config, name: str, source: str = "") -> "RunFolder":
        """A new folder for `name`, or one in which nothing came to a result (a failed start may be repeated).

        Args:
            source: preset or file that the configuration came from; a resume must name the same one, or none.

        Raises:
            UserError: the name is not a plain folder name, or the folder has results or foreign files.
        """
        if name == LATEST:
            raise UserError(f"--run {name}: means the newest run; choose another name, or go on with it by --resume")
        path = Path(config.output_dir) / _checked(name)
        try:
            if path.exists() and (not path.is_dir() or _has_results(path)):
                raise UserError(
                    f"{path} holds results already; choose another --run, or continue training with --resume"
                )
            for folder in SUBFOLDERS:
                (path / folder).mkdir(parents=True, exist_ok=True)
            cls(path).save_config(config)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            _write_json(path / "environment.json", {"source": source, "created": created, **environment(config)})
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); choose another --set output_dir=DIR"
            ) from None
        return cls(path)

    @classmethod
    def create_beside(cls, config: Config, name: str, source: str = "") -> "RunFolder":
        """`create`, under `name` or the first of `name-2`, `name-3` ... that is free."""
        number, candidate = 1, name
        while (path := Path(config.output_dir) / candidate).exists() and _has_results(path):
            number += 1
            candidate = f"{name}-{number}"
        return cls.create(config, candidate, source)

    @classmethod
    def reopen(cls, config: Config, name: str) -> "RunFolder":
        """The folder of an earlier run.

        Raises:
            UserError: there is none, or its stages.json is damaged, which must not come out at the end of a stage.
        """
        path = Path(config.output_dir) / _checked(name)
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} is not a run folder; `shadowlab runs {config.output_dir}` shows those there are")
        run = cls(path)
        run.stages()
        return run

    def claim(self) -> TextIO:
        """Keep other processes out until the returned file is closed, or this process ends, however that comes.

        Raises:
            UserError: another one works on this run.
        """
        lock = (self.path / LOCK).open("w")
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.2)  # a report looks whether the run is under way, for a moment
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(
                f"{self.path}: another process works on this run; wait for it, or choose another --run"
            ) from None
        except OSError:  # a file system without locks: nobody can be kept out
            pass
        return lock

    @property
    def is_claimed(self) -> bool:
        """Whether a process works on this run now; False where the file system has no locks."""
        try:
            refuse_pipe(self.path / LOCK)
            with (self.path / LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # never claimed, or no locks here
            return False
        return False

    def save_config(self, config: Config) -> None:
        """Replace config.yaml: what a resumed run continues with."""
        temporary = self.path / "config.tmp"
        temporary.write_text(dump_config(config), encoding="utf-8")
        temporary.replace(self.path / "config.yaml")

    @property
    def source(self) -> str:
        """The `source` it was created with.

        Raises:
            UserError: environment.json is absent or damaged.
        """
        file = self.path / "environment.json"
        source = _read_json(file, "leave --preset and --config out to resume without it").get("source", "")
        if not isinstance(source, str):
            raise UserError(f"{file}: `source` is no text; leave --preset and --config out to resume without it")
        return source

    def saved_config(self) -> Config:
        return load_config(file=self.path / "config.yaml")

    def record_stage(self, name: str, *, passed: bool, config: Config, summary: dict[str, Any]) -> None:
        """Add or replace a stage's result in stages.json."""
        stages = self.stages()
        stages[name] = {
            "passed": passed,
            "model_hash": config.model_hash(),
            "shadowlab_version": __version__,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "summary": summary,
        }
        _write_json(self.path / "stages.json", stages)

    def stages(self) -> dict[str, Any]:
        """Stage name to result; empty where none finished.

        Raises:
            UserError: stages.json was damaged.
        """
        file, fix = self.path / "stages.json", "remove the file to run the stages again"
        if not file.exists():
            return {}
        stages = _read_json(file, fix)
        for name, entry in stages.items():
            for key, kind in _ENTRY.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    raise UserError(f"{file}: {name}.{key} is absent or no {kind.__name__}; {fix}")
        return stages


def default_name(preset: str, stage: str) -> str:
    """Preset, stage and UTC time: `tiny-overfit-20260131T093000Z`."""
    return f"{plain_label(preset)}-{stage}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def plain_label(label: str) -> str:
    """A preset's or a file's name as the beginning of a run's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", label).lstrip("._+-")[:_MAX_LABEL] or "run"


def _checked(name: str) -> str:
    """`name`, if it can be a folder's below output_dir; else UserError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise UserError(f"--run {name}: use letters, digits and . _ + - (it becomes a folder name)")
    if len(name) > MAX_NAME:
        raise UserError(f"--run {name[:20]}...: {len(name)} characters, at most {MAX_NAME}; choose a shorter name")
    return name


def _has_results(path: Path) -> bool:
    """Whether a run folder holds more than the beginning of a run that came to nothing."""
    beginning = {"config.yaml", "environment.json", "log.txt", "required-stages.json", LOCK, *SUBFOLDERS}
    return any(
        item.name not in beginning or (item.is_dir() and any(item.iterdir()))
        for item in (path.iterdir() if path.is_dir() else ())
    )


def _read_json(file: Path, fix: str) -> dict[str, Any]:
    """The JSON object in `file`; raises UserError that ends with `fix`."""
    try:
        refuse_pipe(file)
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {fix}") from None
    except (ValueError, RecursionError):  # neither JSON nor UTF-8, or nested thousandfold
        raise UserError(f"{file}: not JSON; {fix}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a JSON object; {fix}")
    return content


def refuse_pipe(file: Path) -> None:
    """Raise OSError where `file` is a pipe, a socket or a device, whose reader would wait."""
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise OSError(errno.EINVAL, "not a file", str(file))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(encode(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
