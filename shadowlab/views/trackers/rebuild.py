"""A run's records and pictures written to a tracker again, as one session."""

from collections.abc import Sequence
from pathlib import Path

from diagnostics.records import read_records
from shadowlab.console import Reporter
from shadowlab.errors import SinkError, StageFailedError, UserError
from shadowlab.extras import require_tracker
from shadowlab.runs import RunFolder, find_run
from shadowlab.settings import values
from shadowlab.views.tensorboard import opened_picture, saved_pictures
from shadowlab.views.trackers.sinks import TRACKERS, tracker


def run_track(run: str, kinds: Sequence[str], reporter: Reporter) -> None:
    """Write the records and the saved pictures of a run to trackers, each as one session with all steps.

    Args:
        run: folder, name below runs/, or `latest`. kinds: names of `TRACKERS`.

    Raises:
        UserError: no such run, a name that is none, or records that cannot be read.
        MissingDependencyError: a tracker's package is absent.
        StageFailedError: a tracker refuses.
    """
    unknown = [kind for kind in kinds if kind not in TRACKERS]
    if unknown or not kinds:
        raise UserError(f"--to {unknown[0] if unknown else 'nothing'}: give {' or '.join(TRACKERS)}")
    for kind in dict.fromkeys(kinds):
        require_tracker(kind)
    folder = find_run(run).path
    for kind in dict.fromkeys(kinds):
        num_records, num_pictures = _write(folder, kind)
        reporter.say(f"{TRACKERS[kind][0]}: {num_records} records and {num_pictures} pictures of {folder}")
        reporter.result({"run": str(folder), "tracker": kind, "records": num_records, "pictures": num_pictures})


def _write(folder: Path, kind: str) -> tuple[int, int]:
    metrics, num_records = folder / "metrics.jsonl", 0
    run = RunFolder(folder)
    config = values(run.saved_config()) if (folder / "config.yaml").is_file() else {}
    pictures = saved_pictures(folder / "samples")
    sink = tracker(kind, folder, config, folder.resolve().name)
    try:
        for record in read_records(metrics):
            sink.write(record)
            num_records += 1
        for tag, file, step in pictures:
            with opened_picture(file) as (picture, _):
                sink.picture(tag, picture, step)
        sink.close()
    except SinkError as error:
        raise StageFailedError(f"{sink.name}: {error}; what it has of {folder} is not whole") from error
    except (OSError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    return num_records, len(pictures)
