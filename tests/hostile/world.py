"""A user's folder with a run of somebody else in it, and what lies around it."""

import base64
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

GOOD = Path(__file__).parents[1] / "old_runs" / "folder"
GUEST = Path("runs/guest")
"""The hostile run, from the user's folder."""
SECRET = "TOP-SECRET-7c1e"
_OPTIONS = {"format": 1, "judged": 1, "task": "shadow", "data": "7c" * 32, "image size": 32, "methods": ["all black"]}
_LINE = {"number": 0, "sample": "a", "object": "a", "track": "all", "trained_on": False, "conditions": ""}
_METHODS = {"all black": {"soft_iou": [0.0], "rmse": [0.1]}}
PICTURE = Path("samples/step-00000003.png")
EXTRAS = {
    ".lock": "",
    "required-stages.json": '{"check-forward": "runs/guest-check-forward"}\n',
    "reports/report.html": "an older page",
    "judged/options.json": json.dumps(_OPTIONS),
    "judged/evaluation.json": json.dumps({"task": "shadow", "data": "data", "tracks": {}}),
    "judged/per_image.jsonl": f"{json.dumps({**_LINE, 'methods': _METHODS})}\n",
}
"""Files that today's runs have and the old one has not."""
_LARGE = 2**28  # of a sparse file it is enough to see size and time


@dataclass(frozen=True)
class World:
    """Folders of one trial. The user's is the current one while a command runs."""

    user: Path
    """With `runs/guest`, and the user's own run, weights and data set."""
    outside: Path
    """What no command may read into its output, or change."""

    @property
    def guest(self) -> Path:
        return self.user / GUEST

    @property
    def canary(self) -> Path:
        """Appears where code of the guest's ran."""
        return self.outside / "canary"

    def twin(self, file: str) -> Path:
        """A file outside of the run that could stand in for one of the run's, with a secret in it."""
        return self.outside / "twin" / file


def make_world(place: Path) -> World:
    """A whole world below the empty folder `place`; large files are shared with the others and never written to."""
    world = World(place / "user", place / "outside")
    for name in ("unet", "data"):
        _copy(GOOD / name, world.user / name)
    _copy(GOOD / "runs" / "fallen", world.user / "runs" / "own")
    _copy(GOOD / "runs" / "fallen", world.guest)
    (world.guest / "samples").mkdir(exist_ok=True)
    _noise(0).save(world.guest / PICTURE)
    _noise(1).save(world.guest / "samples" / "light-sweep-step-00000003.png")
    for name in ("reports", "tensorboard"):
        (world.guest / name).mkdir(exist_ok=True)
    for name, text in EXTRAS.items():
        (world.guest / name).parent.mkdir(exist_ok=True)
        (world.guest / name).write_text(text)
    _copy(world.guest, world.outside / "twin")
    for file in (world.outside / "twin").rglob("*"):
        if file.is_file():
            _mark(file)
    (world.outside / "precious").mkdir()
    (world.outside / "precious" / "file.txt").write_text(f"{SECRET}\n")
    return world


def files_of(run: Path) -> list[str]:
    """Every file of a run folder, by its path in it."""
    return sorted(file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file())


def state_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """What shows a change of anything below a folder; no link is followed."""
    found: dict[str, tuple[object, ...]] = {}
    for path in _walk(folder):
        status = os.lstat(path)
        is_small = path.is_file() and not path.is_symlink() and status.st_size < _LARGE
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if is_small else ""
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, digest)
    return found


def leaks(world: World, output: str, before: dict[str, tuple[object, ...]]) -> list[str]:
    """Where a secret shows: in what was printed, or in files that the command wrote into the user's folder."""
    needles = [SECRET.encode(), *_picture_needles(world)]
    found = ["the output"] if any(needle in output.encode() for needle in needles) else []
    for path, now in state_of(world.user).items():
        if before.get(path) == now or not now[-1]:
            continue
        content = Path(path).read_bytes()
        if any(needle in content for needle in needles):
            found.append(path)
    return found


def _picture_needles(world: World) -> list[bytes]:
    """The middle of the secret picture, as bytes and as a page would hold it."""
    content = world.twin(str(PICTURE)).read_bytes()
    text = base64.b64encode(content)
    middle = len(content) // 6 * 3
    return [content[middle : middle + 60], text[len(text) // 2 : len(text) // 2 + 60]]


def _mark(file: Path) -> None:
    """Put the secret into a copy where it would be shown."""
    if file.suffix == ".png":
        _noise(2).save(file)
    elif file.suffix in (".json", ".jsonl", ".txt", ".html", ".yaml", ".py"):
        text = file.read_text()
        for word in ("fix", "lines", "finished", "created", "stage", "state_note", "adamw", "data"):
            text = text.replace(f'"{word}": "', f'"{word}": "{SECRET} ')
        if file.suffix == ".yaml":
            text = f"# {SECRET}\n{text}".replace("output_dir: runs", f"output_dir: {SECRET}")
        if file.name in ("log.txt", "verdict.txt", "report.html", "repro.py"):
            text = f"# {SECRET}\n{text}"
        if file.name == "source.json":
            text = text.replace('"lines": [', f'"lines": ["{SECRET}", ')
        file.unlink()
        file.write_text(text)


def _noise(seed: int) -> Image.Image:
    numbers = random.Random(seed).randbytes(48 * 48 * 3)
    return Image.frombytes("RGB", (48, 48), numbers)


def _copy(source: Path, target: Path) -> None:
    """Files that a command replaces as wholes share their bytes with the source."""

    def one(a: str, b: str) -> None:
        if a.endswith(".safetensors"):
            os.link(a, b)
        else:
            shutil.copyfile(a, b)

    shutil.copytree(source, target, copy_function=one)


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(place) / name


__all__ = ["GUEST", "PICTURE", "SECRET", "World", "files_of", "leaks", "make_world", "state_of"]
