"""The folder of a run: what is in it, when it may be used again, and what its stages proved.

runs/NAME/{config.yaml, environment.json, stages.json, metrics.jsonl, log.txt,
           tensorboard/, checkpoints/, samples/, incidents/, reports/}
"""

import difflib
import fcntl
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch

from diagnostics.records import History, encode
from shadowlab import __version__
from shadowlab.errors import UserError
from shadowlab.settings import Config, dump_config, load_config

SUBFOLDERS = ("tensorboard", "checkpoints", "samples", "incidents", "reports")
MAX_NAME = 150  # characters; file systems take 255, and required stages append theirs
_MAX_LABEL = 100
LOCK = ".lock"

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

        Raises:
            UserError: the name is not a plain folder name, or the folder has results or foreign files.

        source: preset or file that the configuration came from; a resume must name the same one, or none.
        """
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
            raise UserError(f"{path} is not a run folder; `ls {config.output_dir}` shows those there are")
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
        file, mend = self.path / "stages.json", "remove the file to run the stages again"
        if not file.exists():
            return {}
        stages = _read_json(file, mend)
        for name, entry in stages.items():
            for key, kind in _ENTRY.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    raise UserError(f"{file}: {name}.{key} is absent or no {kind.__name__}; {mend}")
        return stages


def default_name(preset: str, stage: str) -> str:
    """Preset, stage and UTC time: `tiny-overfit-20260131T093000Z`."""
    return f"{_plain(preset)}-{stage}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def _plain(label: str) -> str:
    """`label`, which may be any file's name, as the beginning of a run's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", label).lstrip("._+-")[:_MAX_LABEL] or "run"


def _checked(name: str) -> str:
    """`name`, if it can be a folder's below output_dir; else UserError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise UserError(f"--run {name}: use letters, digits and . _ + - (it becomes a folder name)")
    if len(name) > MAX_NAME:
        raise UserError(f"--run {name[:20]}...: {len(name)} characters, at most {MAX_NAME}; choose a shorter name")
    return name


def stage_passed(config: Config, stage: str, *, on_unreadable: Callable[[str], None]) -> Path | None:
    """The newest run below output_dir in which `stage` passed for this model configuration, if any.

    An overfit with a weaker criterion or fewer samples than configured does not count. A stages.json that cannot be
    read proves nothing: `on_unreadable` is told, and the search goes on.
    """
    found, model_hash = [], config.model_hash()
    for file in Path(config.output_dir).glob("*/stages.json"):
        try:
            result = RunFolder(file.parent).stages().get(stage)
        except UserError as error:
            on_unreadable(f"proves nothing: {error}")
            continue
        if result and result["passed"] and result["model_hash"] == model_hash and _as_strict(config, stage, result):
            found.append((result["finished"], file.parent))
    return max(found)[1] if found else None


def _as_strict(config: Config, stage: str, result: dict[str, Any]) -> bool:
    if stage != "overfit":
        return True
    wanted, criterion = config.overfit, result["summary"].get("criterion")
    least = {"r2": wanted.min_r2, "soft_iou": wanted.min_soft_iou, "num_samples": wanted.num_samples}
    # An earlier version may have written less: then it proves nothing.
    return isinstance(criterion, dict) and all(
        isinstance(criterion.get(name), int | float) and criterion[name] >= value for name, value in least.items()
    )


def _has_results(path: Path) -> bool:
    """Whether a run folder holds more than the beginning of a run that came to nothing."""
    beginning = {"config.yaml", "environment.json", "log.txt", "required-stages.json", LOCK, *SUBFOLDERS}
    return any(
        item.name not in beginning or (item.is_dir() and any(item.iterdir()))
        for item in (path.iterdir() if path.is_dir() else ())
    )


def latest_training_run(config: Config, preset: str) -> str:
    """Name of the newest run of `preset` that has a checkpoint, for --resume without --run.

    Raises:
        UserError: there is none.
    """
    folders = Path(config.output_dir).glob(f"{_plain(preset)}-train-*/checkpoints/step-*/COMPLETE")
    newest = max(folders, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UserError(
            f"--resume: no run of preset {preset} with a checkpoint in {config.output_dir}/; name it with --run"
        )
    return newest.parents[2].name


def run_places(path: str, output_dir: str | None = None) -> tuple[Path, Path]:
    """Where to look for what a user names by a path, or by a name below `output_dir`."""
    given = Path(path)
    with suppress(RuntimeError):  # ~NAME, and no user is called so
        given = given.expanduser()
    return given, Path(output_dir or Config().output_dir) / path


@contextmanager
def telling_where() -> Iterator[None]:
    """A place that cannot be looked at (no permission, a name that is too long) is one line that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be looked at ({error.strerror})") from error


def read_history(metrics: Path) -> History:
    """All records of a run.

    Raises:
        UserError: they cannot be read, or a line is damaged.
    """
    try:
        return History.read(metrics)
    except ValueError as error:  # it names file and line
        raise UserError(" ".join(str(error).split())) from error
    except OSError as error:
        raise UserError(f"{metrics}: cannot be read ({error.strerror or error})") from error


@telling_where()
def find_run(path: str, output_dir: str | None = None, *, with_records: bool = True) -> RunFolder:
    """The run that `path` names: its folder, its metrics.jsonl, an incident of it, or a name below `output_dir`.

    Args:
        with_records: whether one without metrics.jsonl is an error.

    Raises:
        UserError: there is none, it cannot be looked at, or it has no records.
    """
    given, below = run_places(path, output_dir)
    for place in (given, below):
        if place.name == "metrics.jsonl":
            place = place.parent
        elif (place / "verdict.json").is_file():  # runs/NAME/incidents/step-1: it may have a config.yaml, too
            place = place.resolve().parents[1]
        run = RunFolder(place)
        if run.metrics.is_file():
            return run
        if any((place / name).exists() for name in ("config.yaml", "stages.json", "incidents")):
            if not with_records:
                return run
            raise UserError(
                f"{place}: has no metrics.jsonl: it came to no training step (overfit and train write it, one line a "
                "step)"
            )
    found = next((place for place in (given, below) if place.exists()), None)
    if found is not None:
        raise UserError(f"{found}: not a run folder (no {'' if with_records else 'config.yaml, '}metrics.jsonl)")
    runs = Path(output_dir or Config().output_dir)
    names = [file.parent.name for file in runs.glob("*/metrics.jsonl")]
    close = difflib.get_close_matches(path, names, 1)
    hint = f"; did you mean `{close[0]}`?" if close else f"; `ls {runs}` shows the runs there are"
    raise UserError(f"{path}: no such run, here or in {runs}/{hint}")


def environment(config: Config) -> dict[str, Any]:
    """Versions and hardware that a result depends on."""
    packages = ("torch", "diffusers", "accelerate", "safetensors", "numpy", "pydantic", "torchmetrics", "tensorboard")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "shadowlab": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "gpus": gpus,
        "cpu_threads": torch.get_num_threads(),
        "model_hash": config.model_hash(),
        "command": sys.argv[1:],
    }


def _read_json(file: Path, mend: str) -> dict[str, Any]:
    """The JSON object in `file`; raises UserError that ends with `mend`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {mend}") from None
    except (ValueError, RecursionError):  # neither JSON nor UTF-8, or nested thousandfold
        raise UserError(f"{file}: not JSON; {mend}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a JSON object; {mend}")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(encode(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
