"""The folder of a run: what is in it, when it may be used again, and what its stages proved.

runs/NAME/{config.yaml, environment.json, stages.json, metrics.jsonl, log.txt,
           tensorboard/, checkpoints/, samples/, incidents/, reports/,
           required/STAGE/: of a training, the stages that it ran before, each a run folder}
"""

import fcntl
import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from diagnostics.files import lock_file, open_file, read_json, reason_of, replace_text, require_inside
from diagnostics.records import encode, read_records
from shadowlab import __version__
from shadowlab.errors import UserError
from shadowlab.runs.environment import environment
from shadowlab.settings import Config, dump_config, load_kept_config

SUBFOLDERS = ("tensorboard", "checkpoints", "samples", "incidents", "reports")
MAX_NAME = 150  # characters; file systems take 255, and a number may be appended
_MAX_LABEL = 100
LOCK = ".lock"
_HALF_WRITTEN = re.compile(r"\..+\.[0-9]+\.tmp")  # what a killed process left of a file
REQUIRED = "required"
"""Folder, in that of a training, of the stages that it ran before."""
Keeps = Callable[[Config, Path], Config]
LATEST = "latest"
"""What a user calls the newest run by."""

# What stage_passed and --resume read of an entry of stages.json.
_ENTRY = {"passed": bool, "model_hash": str, "finished": str, "summary": dict}


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Made by `create` or `reopen`."""

    path: Path
    made: Path | None = field(default=None, compare=False)
    """The outermost folder that `create` made for it; None where the run's own was there before."""

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
    def create(cls, config: Config, name: str, source: str = "", keeps: Keeps | None = None) -> "RunFolder":
        """A new folder for `name`, or one in which nothing came to a result (a failed start may be repeated).

        Args:
            source: preset or file that the configuration came from; a resume must name the same one, or none.
            keeps: puts into the folder what the run starts from, and gives the configuration that names it there.

        Raises:
            UserError: the name is not a plain folder name, or the folder has results or foreign files.
        """
        if name == LATEST:
            raise UserError(f"--run {name}: means the newest run; choose another name, or go on with it by --resume")
        return cls._make(Path(config.output_dir) / _checked(name), config, source, keeps)

    @classmethod
    def create_beside(cls, config: Config, name: str, source: str = "", keeps: Keeps | None = None) -> "RunFolder":
        """`create`, under `name` or the first of `name-2`, `name-3` ... that is free."""
        return cls._make(_free(Path(config.output_dir) / _checked(name)), config, source, keeps)

    def create_required(self, config: Config, stage: str) -> "RunFolder":
        """A new folder inside this one, for a stage that must pass first. One that came to no result is replaced,
        unless it holds evidence: a kill may come between an incident and the stage's result."""
        path = self.path / REQUIRED / stage
        has_evidence = any((path / "incidents").glob("*"))
        if path.is_dir() and not path.is_symlink() and not (path / "stages.json").exists() and not has_evidence:
            shutil.rmtree(path, ignore_errors=True)
        return RunFolder._make(_free(path), config, "")

    @classmethod
    def _make(cls, path: Path, config: Config, source: str, keeps: Keeps | None = None) -> "RunFolder":
        made = None if path.exists() else next(one for one in [*path.parents[::-1], path] if not one.exists())
        run = cls(path, made)
        try:
            if path.exists() and (not path.is_dir() or _has_results(path)):
                go_on = ", or continue training with --resume" if _is_training(path) else ""
                raise UserError(f"{path} holds results already; choose another --run{go_on}")
            run.require_own_folders()
            if run.is_claimed:  # it has recorded nothing yet, and its configuration is its own
                raise UserError(_busy(path))
            for folder in SUBFOLDERS:
                (path / folder).mkdir(parents=True, exist_ok=True)
            config = config if keeps is None else keeps(config, path)
            run.save_config(config)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            _write_json(path / "environment.json", {"source": source, "created": created, **environment(config)})
        except OSError as error:
            run.discard()
            raise UserError(
                f"{path}: cannot be written ({reason_of(error)}); choose another --set output_dir=DIR"
            ) from None
        return run

    def discard(self) -> bool:
        """Remove the folder if `create` made it and nothing was done in it: no step, no result, no evidence.

        One that is claimed stays: another process may have made it in the same moment.

        Returns:
            Whether it is gone.
        """
        if self.made is None or self.is_claimed or self._did_something():
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self.path.parents:
            if not parent.is_relative_to(self.made):
                break
            with suppress(OSError):  # somebody else's run is there by now
                parent.rmdir()
        return not self.path.exists()

    def _did_something(self) -> bool:
        kept = [self.checkpoints, self.path / "incidents", self.path / REQUIRED]
        if (self.path / "stages.json").exists() or any(one.is_dir() and any(one.iterdir()) for one in kept):
            return True
        try:
            return self.metrics.exists() and any("step" in record for record in read_records(self.metrics))
        except (OSError, ValueError):  # what cannot be read is not thrown away
            return True

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
        try:
            run.require_own_folders()
        except OSError as error:
            raise UserError(f"{error.filename}: {reason_of(error)}; nothing is written or removed there") from None
        run.stages()
        return run

    def require_own_folders(self) -> None:
        """Refuse a folder of the run that is a link out of it: what is written or removed there is somebody else's.

        The run's folder itself may be a link.

        Raises:
            RefusedFileError: names it.
        """
        for folder in SUBFOLDERS:
            require_inside(self.path / folder, self.path)

    def claim(self) -> BinaryIO:
        """Keep other processes out until the returned file is closed, or this process ends, however that comes.

        Raises:
            UserError: another one works on this run, or its lock is no file.
        """
        try:
            lock = lock_file(self.path / LOCK)
        except OSError as error:
            raise UserError(f"{self.path / LOCK}: cannot be locked ({reason_of(error)}); remove it") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.2)  # a report looks whether the run is under way, for a moment
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(_busy(self.path)) from None
        except OSError:  # a file system without locks: nobody can be kept out
            pass
        return lock

    @property
    def is_claimed(self) -> bool:
        """Whether a process works on this run now; False where the file system has no locks."""
        try:
            with open_file(self.path / LOCK, inside=self.path) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # never claimed, or no locks here
            return False
        return False

    def save_config(self, config: Config) -> None:
        """Replace config.yaml: what a resumed run continues with."""
        replace_text(self.path / "config.yaml", dump_config(config))

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

    @property
    def command(self) -> list[str]:
        """Words of the command that made it, behind `shadowlab`; empty where they are not known."""
        return _command(self.path)

    def saved_config(self) -> Config:
        return load_kept_config(self.path / "config.yaml")

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


def _busy(path: Path) -> str:
    return f"{path}: another process works on this run; wait for it, or choose another --run"


def _free(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3` ... that holds no results and that nobody works on."""
    number, candidate = 1, path
    while candidate.exists() and (_has_results(candidate) or RunFolder(candidate).is_claimed):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _command(path: Path) -> list[str]:
    with suppress(OSError, ValueError):
        content = read_json(path / "environment.json", inside=path)
        words = content.get("command") if isinstance(content, dict) else None
        return [str(word) for word in words] if isinstance(words, list) else []
    return []


def _is_training(path: Path) -> bool:
    return _command(path)[:1] == ["train"] or any((path / "checkpoints").glob("step-*"))


def _has_results(path: Path) -> bool:
    """Whether a run folder holds more than the beginning of a run that came to nothing."""
    beginning = {"config.yaml", "environment.json", "log.txt", "required-stages.json", LOCK, *SUBFOLDERS}
    return any(
        item.is_dir() and any(item.iterdir()) if item.name in beginning else not _HALF_WRITTEN.fullmatch(item.name)
        for item in (path.iterdir() if path.is_dir() else ())
    )


def _read_json(file: Path, fix: str) -> dict[str, Any]:
    """The JSON object in `file`; raises UserError that ends with `fix`."""
    try:
        content = read_json(file, inside=file.parent)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason_of(error)}); {fix}") from None
    except ValueError:  # neither JSON nor UTF-8, or nested thousandfold
        raise UserError(f"{file}: not JSON; {fix}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a JSON object; {fix}")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(encode(content), indent=2, allow_nan=False) + "\n")
