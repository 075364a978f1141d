"""One command on one hostile folder, and what is wrong with what came of it."""

import os
import resource
import signal
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from unittest import mock

from typer.testing import CliRunner

from tests.hostile.attacks import LIBRARY, Attack
from tests.hostile.commands import Command
from tests.hostile.world import World, leaks, make_world, state_of

_MOST_BYTES = 2 * 2**30  # that a trial may add to the largest memory of the process
_BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class HangError(BaseException):
    """Not an Exception: no command catches it."""


@dataclass(frozen=True)
class Trial:
    """What became of a command."""

    attack: Attack
    command: Command
    faults: tuple[str, ...]
    output: str
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.command.name} <- {self.attack.name}"


def run_trial(attack: Attack, command: Command, folder: Path | None = None) -> Trial:
    """A fresh world, the attack, the command in this process."""
    from cli.main import app

    with tempfile.TemporaryDirectory(dir=folder, prefix="world-") as place:
        world = make_world(Path(place))
        attack.act(world)
        outside, before = state_of(world.outside), state_of(world.user)
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        began = time.monotonic()
        output, faults = "", []
        try:
            with _in_folder(world.user), _limit(command.seconds), _no_server():
                done = CliRunner().invoke(app, list(command.words))
            output = done.output
            if done.exit_code not in (0, 1, 2, 3):
                faults.append(f"exit code {done.exit_code}")
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                last = traceback.extract_tb(done.exception.__traceback__)[-1]
                said = f"{type(done.exception).__name__}: {str(done.exception)[:200]} at {last.filename}:{last.lineno}"
                faults.append(f"traceback: {said}")
        except HangError:
            faults.append(f"hangs: nothing after {command.seconds} s")
        faults += _faults_of(world, output, outside, before)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - largest
        if grown > _MOST_BYTES:
            faults.append(f"memory: {grown / 2**30:.1f} GiB")
        _make_removable(Path(place))
        return Trial(attack, command, tuple(faults), output, time.monotonic() - began)


def _faults_of(
    world: World, output: str, outside: dict[str, tuple[object, ...]], before: dict[str, tuple[object, ...]]
) -> Iterator[str]:
    if world.canary.exists():
        yield "code ran"
    if LIBRARY in Path("/proc/self/maps").read_text():
        yield "a library was loaded"
    now = state_of(world.outside)
    yield from (
        f"outside: {path} changed" for path in sorted(outside.keys() | now.keys()) if outside.get(path) != now.get(path)
    )
    own = {path: state for path, state in state_of(world.user).items() if not path.startswith(str(world.guest))}
    for path, state in own.items():
        if path in before and before[path][3:] != state[3:] and path != str(world.user / "runs"):
            yield f"the user's {path} changed"
    yield from (f"shows a secret: {place}" for place in leaks(world, output, before))
    strange = sorted({c for c in output if _is_control(c)})
    if strange:
        yield f"control characters printed: {strange}"


def _is_control(character: str) -> bool:
    return character in _BIDI or (unicodedata.category(character) == "Cc" and character not in "\n\t")


@contextmanager
def _in_folder(place: Path) -> Iterator[None]:
    here = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(here)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise HangError

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def _no_server() -> Iterator[None]:
    """`tensorboard` builds its view and starts no server, `export` starts no process; no hub is asked for anything."""
    offline = mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    launch = mock.patch("shadowlab.views.tensorboard.serve._launch", return_value="http://localhost")
    waiting = mock.patch("shadowlab.views.tensorboard.serve.NamedRuns.follow", side_effect=KeyboardInterrupt)
    compared = mock.patch("shadowlab.exporting.run.compare_folder", return_value=(0.0, "nothing"))
    with offline, launch, waiting, compared:
        yield


def _make_removable(place: Path) -> None:
    for folder, names, _ in os.walk(place):
        for name in names:
            if not Path(folder, name).is_symlink():
                Path(folder, name).chmod(0o755)
