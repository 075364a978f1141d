"""What a check found of a data set, kept in the user's cache folder by its fingerprint, so that nobody asks twice."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from diagnostics.files import read_json, replace, replace_text
from shadowlab.examination.report import CheckReport
from shadowlab.own_cache import make_cache_folder, require_own
from shadowlab.settings import Config

_FOLDER = "checked"
_FORMAT = 1  # one more whenever a check finds something else
_MOST = 256  # results; older ones are removed


@dataclass(frozen=True)
class Known:
    """The result of an earlier check."""

    passed: bool
    num_samples: int
    num_examined: int
    first: str
    """The first of what is wrong; empty where nothing is."""
    count: int
    """Of what is wrong."""


def keep_result(config: Config, report: CheckReport) -> None:
    """Best effort: a cache that cannot be written has no effect.

    One of fewer samples does not take the place of one of more.
    """
    wrong = [str(problem) for problem in report.problems] + report.errors
    known = Known(report.passed, report.num_samples, report.num_examined, wrong[0] if wrong else "", len(wrong))
    earlier = known_result(config, report.fingerprint)
    if earlier is not None and earlier.num_examined > known.num_examined:
        return
    with suppress(OSError):
        folder = make_cache_folder(_FOLDER)
        replace_text(_file(folder, config, report.fingerprint), json.dumps(asdict(known)) + "\n")
        _remove_old(folder)


def known_result(config: Config, fingerprint: str) -> Known | None:
    """None where it was not checked, or the note cannot be read or trusted."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        file = _file(make_cache_folder(_FOLDER), config, fingerprint)
        require_own(file)
        note = read_json(file)
        if isinstance(note, dict) and isinstance(note.get("passed"), bool):
            return Known(
                note["passed"],
                int(note["num_samples"]),
                int(note["num_examined"]),
                str(note["first"]),
                int(note["count"]),
            )
    return None


def keep_picture(fingerprint: str, picture: np.ndarray) -> str:
    """(H, W, 3) uint8 -> its file in the cache folder; empty where that cannot be written."""
    with suppress(OSError):
        file = make_cache_folder(_FOLDER) / f"{fingerprint[:32]}.png"
        encoded = BytesIO()
        Image.fromarray(picture).save(encoded, format="PNG")
        replace(file, encoded.getvalue())
        return str(file)
    return ""


def _file(folder: Path, config: Config, fingerprint: str) -> Path:
    words = f"{_FORMAT}\n{config.task}\n{fingerprint}"
    return folder / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.json"


def _remove_old(folder: Path) -> None:
    files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
    for file in files[: -2 * _MOST]:
        file.unlink(missing_ok=True)
