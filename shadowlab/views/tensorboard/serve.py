"""TensorBoard on a run, with settings for a run of many layers."""

from collections.abc import Sequence
from pathlib import Path

from shadowlab.console import Reporter
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.runs import find_run, run_places, telling_where
from shadowlab.settings import Config
from shadowlab.views.tensorboard.named_runs import NamedRuns
from shadowlab.views.tensorboard.rebuild import rebuild_board

_RELOAD_SECONDS = 5  # the files are read on from where they were left, so this costs little; runs flush every 10

# TensorBoard shows a random choice of so many points of a tag, by default 1000 scalars and 10 pictures: a spike of one
# step would be lost, and a slider jump. Kept whole are runs of 20,000 logged steps, 250 validations and every text;
# the event files' own bound keeps the memory small, for what is not written cannot be loaded.
_SAMPLES = {"scalars": 20_000, "images": 250, "histograms": 500, "text": 1_000}


def run_tensorboard(
    run: str, reporter: Reporter, *, port: int | None, host: str, rebuild: bool, layers: Sequence[str]
) -> None:
    """Serve a run, or all below a folder, until Ctrl-C.

    Args:
        run: folder, name below runs/, `latest`, or the folder of several runs.
        port: None for the first free one from 6006.
        rebuild: rebuild the view first, with every step of `layers` (shell patterns; none: as it was written).

    Raises:
        UserError: no such run, the port is taken, or as `rebuild_board`.
    """
    if rebuild or layers:
        place = _find_records(run)
        reporter.say(f"reading {place / 'metrics.jsonl'}")
        rebuilt = rebuild_board(place, layers)
        logdir = rebuilt.folder
        full = f", every step of {len(rebuilt.in_full)} layers and parameters" if layers else ""
        reporter.say(
            f"{logdir}: rebuilt from {rebuilt.num_records} records and {rebuilt.num_pictures} pictures of samples/"
            f"{full}{_beside(place / 'tensorboard')}"
        )
    else:
        place, logdir = _find(run)
    if not any(logdir.rglob("events.out.tfevents.*")):
        reporter.say(f"{logdir} holds nothing yet; it appears here when the run writes it")
    with NamedRuns(logdir, place.resolve()) as named:
        reporter.say(f"{_launch(named.folder, place.resolve().name, port, host, reporter)}  (Ctrl-C ends it)")
        try:
            named.follow()
        except KeyboardInterrupt:
            reporter.say("ended")


def _beside(written: Path) -> str:
    return f"; {written} is as it was, and a TensorBoard on both shows both" if written.is_dir() else ""


@telling_where()
def _find_records(run: str) -> Path:
    """The folder of one run that has records; its tensorboard/ may be gone."""
    for place in run_places(run):
        owner = _owner(place)
        if owner != place:
            return owner
        if not (place / "metrics.jsonl").is_file() and any(place.glob("*/metrics.jsonl")):
            raise UserError(f"{place}: holds several runs; name the one that --rebuild and --layers are for")
    return find_run(run).path


@telling_where()
def _find(run: str) -> tuple[Path, Path]:
    """The run, or the folder of several, that `run` names, and the folder to serve."""
    for place in run_places(run):
        owner = _owner(place)
        view = place / "tensorboard" if owner == place else place
        if view.is_dir():
            return owner, view
        if any(place.glob("*/tensorboard")):
            return place, place
        if (owner / "metrics.jsonl").is_file():
            fix = f"`shadowlab tensorboard {owner} --rebuild` rebuilds it from metrics.jsonl"
            raise UserError(f"{view}: missing; {fix}")
    if run_places(run)[0].exists():
        raise UserError(f"{run}: neither a run (no tensorboard/ in it) nor a folder of runs")
    runs = Path(Config().output_dir)
    raise UserError(f"{run}: no such run, here or in {runs}/; `shadowlab runs` shows the runs there are")


def _owner(place: Path) -> Path:
    """The run of which `place` is a view; any other place itself."""
    is_of_run = any((place.parent / name).is_file() for name in ("config.yaml", "metrics.jsonl"))
    return place.parent if place.name.startswith("tensorboard") and is_of_run else place


def _launch(logdir: Path, title: str, port: int | None, host: str, reporter: Reporter) -> str:
    """Start the server in a thread that ends with this process; returns its address."""
    try:
        from tensorboard import program  # type: ignore[import-untyped]
        from tensorboard.data import server_ingester  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(f"tensorboard cannot be imported ({error}); pip install tensorboard") from None
    try:
        server_ingester.get_server_binary()
        reader = "true"
    except server_ingester.NoDataServerError:
        reader = "false"
    flags: dict[str, object] = {
        "logdir": str(logdir),
        "host": host,
        "port": port,
        "window_title": f"{title} - shadowlab",
    }
    flags |= {"reload_interval": _RELOAD_SECONDS, "samples_per_plugin": _SAMPLES}
    try:
        try:
            return _started(program, flags, reader)
        except SystemExit:  # the reader was found and does not run here; it has said why
            reporter.warn("TensorBoard's fast reader does not start; its own one, which is slower, reads")
            return _started(program, flags, "false")
    except program.TensorBoardPortInUseError:
        raise UserError(f"--port {port}: in use; leave --port out to have a free one found") from None
    except program.TensorBoardServerException as error:
        raise UserError(f"--host {host}: TensorBoard cannot serve there ({error.msg})") from None


def _started(program: object, flags: dict[str, object], reader: str) -> str:
    board = program.TensorBoard()  # type: ignore[attr-defined]
    board.configure(**flags, load_fast=reader)
    return str(board.launch())
