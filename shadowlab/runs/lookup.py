"""Finding runs: the one that a user names by a path, by its name or as `latest`, and those that prove a stage."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from diagnostics.files import reason_of
from diagnostics.records import History
from shadowlab.errors import UserError
from shadowlab.runs.folder import LATEST, REQUIRED, RunFolder, plain_label
from shadowlab.runs.saved import marked_complete
from shadowlab.settings import Config

_MARKS = ("config.yaml", "stages.json", "metrics.jsonl", "incidents")  # a run folder has one of them
_WRITTEN = ("config.yaml", "environment.json", "log.txt", "metrics.jsonl", "stages.json", "incidents")


def required_runs(place: Path) -> list[Path]:
    """Folders of the stages that a training ran before, inside its own; empty where there are none.

    Raises:
        OSError: it cannot be looked at.
    """
    folder = place / REQUIRED
    found = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ()
    return sorted(one for one in found if one.is_dir() and not one.is_symlink() and _is_run(one))


def _is_run(place: Path) -> bool:
    return any((place / name).exists() for name in _MARKS)


def last_activity(place: Path) -> float | None:
    """When a stage last wrote to a run folder, in seconds since 1970; None where `place` is none.

    Stages that it ran before count; views that are made later, as reports are, do not.

    Raises:
        OSError: it cannot be looked at.
    """
    return max(map(_written, [place, *required_runs(place)])) if _is_run(place) else None


def _written(place: Path) -> float:
    """When a stage last wrote to a run's own files."""
    return max((_modified(place / name) for name in _WRITTEN), default=0.0)


def _modified(file: Path) -> float:
    """0 where it is absent, or goes while it is looked at: the run may be at work, or being removed.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        return file.stat().st_mtime if file.exists() else 0.0
    except FileNotFoundError:
        return 0.0


def _has(place: Path, having: Literal["checkpoint", "incident"]) -> bool:
    if having == "checkpoint":
        return bool(marked_complete(place / "checkpoints"))
    return any(one.is_dir() for one in (place / "incidents").glob("step-*"))


def latest_run(output_dir: Path, *, having: Literal["checkpoint", "incident"] | None = None) -> Path:
    """The folder below `output_dir` that a run was at work in last.

    Folders that cannot be looked at, or that go meanwhile, are skipped.

    Args:
        having: of the runs that have one.

    Raises:
        UserError: there is none.
    """
    found = []
    with telling_where():
        for place in output_dir.iterdir() if output_dir.is_dir() else ():
            with suppress(PermissionError, FileNotFoundError):
                active = last_activity(place) if place.is_dir() else None
                if active is None:
                    continue
                if having is None:
                    found.append((active, place.name, place))
                    continue
                for one in (place, *required_runs(place)):
                    if _has(one, having):
                        found.append((_written(one), one.name, one))
    if not found:
        kind = f"run with {'an' if having == 'incident' else 'a'} {having}" if having else "run"
        raise UserError(f"{LATEST}: there is no {kind} in {output_dir}/; ./{LATEST} is a folder of that name")
    return max(found)[2]


def run_places(
    path: str, output_dir: str | None = None, *, having: Literal["checkpoint", "incident"] | None = None
) -> tuple[Path, Path]:
    """Where to look for what a user names by a path, or by a name below `output_dir`.

    `latest` is the newest run there, or the newest of those `having` one; a folder of that name is `./latest`.

    Raises:
        UserError: `latest`, and there is no run.
    """
    runs = Path(output_dir or Config().output_dir)
    if path == LATEST:
        newest = latest_run(runs, having=having)
        return newest, newest
    given = Path(path)
    with suppress(RuntimeError):  # ~NAME, and no user is called so
        given = given.expanduser()
    return given, runs / path


@contextmanager
def telling_where() -> Iterator[None]:
    """A place that cannot be looked at (no permission, a name that is too long) is one line that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be looked at ({reason_of(error)})") from error


@telling_where()
def find_run(path: str, output_dir: str | None = None, *, with_records: bool = True) -> RunFolder:
    """The run that `path` names: its folder, its metrics.jsonl, an incident of it, a name below `output_dir`, `latest`.

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
            is_named_in_run = place.parent.name == "incidents"  # a link to one elsewhere is not
            place = place.parents[1] if is_named_in_run and len(place.parts) > 2 else place.resolve().parents[1]
        run = RunFolder(place)
        if run.metrics.is_file():
            return run
        if _is_run(place):
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
    hint = f"did you mean `{close[0]}`?" if close else "`shadowlab runs` shows the runs there are"
    raise UserError(f"{path}: no such run, here or in {runs}/; {hint}")


def run_to_resume(config: Config, name: str | None, preset: str) -> str:
    """Name of the run below output_dir that --resume goes on with.

    Args:
        name: what --run was given, if anything: a name, `latest` for the newest run that has a checkpoint, or a path
            to the run's folder.
        preset: without a name, the newest run of this preset that has a checkpoint.

    Raises:
        UserError: there is none.
    """
    if name is None:
        return latest_training_run(config, preset)
    if name == LATEST:
        return latest_run(Path(config.output_dir), having="checkpoint").name
    given = Path(name)
    return given.name if given.parent in (Path(config.output_dir), Path()) else name


def latest_training_run(config: Config, preset: str) -> str:
    """Name of the newest run of `preset` that has a checkpoint, for --resume without --run.

    Raises:
        UserError: there is none.
    """
    folders = Path(config.output_dir).glob(f"{plain_label(preset)}-train-*/checkpoints")
    markers = [(_modified(marker), marker) for folder in folders for marker in marked_complete(folder)]
    newest = max(markers)[1] if markers else None
    if newest is None:
        raise UserError(
            f"--resume: no run of preset {preset} with a checkpoint in {config.output_dir}/; name it with --run"
        )
    return newest.parents[2].name


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
        raise UserError(f"{metrics}: cannot be read ({reason_of(error)})") from error


def stage_passed(
    config: Config,
    stage: str,
    *,
    as_strict: Callable[[dict[str, Any], RunFolder], bool],
    on_unreadable: Callable[[str], None],
) -> Path | None:
    """The newest run below output_dir in which `stage` passed for this model configuration, if any; also one inside a
    training's own folder.

    Args:
        as_strict: whether a passed stage with this summary asked for as much as is asked for now; others do not count.
        on_unreadable: called with the reason where a stages.json cannot be read: it proves nothing.
    """
    found, model_hash = [], config.model_hash()
    runs = Path(config.output_dir)
    for file in (*runs.glob("*/stages.json"), *runs.glob(f"*/{REQUIRED}/*/stages.json")):
        run = RunFolder(file.parent)
        try:
            result = run.stages().get(stage)
        except UserError as error:
            on_unreadable(f"proves nothing: {error}")
            continue
        if result and result["passed"] and result["model_hash"] == model_hash and as_strict(result["summary"], run):
            found.append((result["finished"], run.path))
    return max(found)[1] if found else None
