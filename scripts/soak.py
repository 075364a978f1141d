"""Disturb a training run again and again, resume it each time, and compare its end with a run that nobody disturbed.

    python scripts/soak.py --kills 60            # needs a checkout; about a quarter of an hour on 2 cores
    python scripts/soak.py --kills 60 --processes 2
    python scripts/soak.py --kills 10 --set optimizer.name=adamw8bit

What comes (SIGKILL, SIGINT, SIGTERM, SIGHUP, a stdout and stderr that nobody reads, a disk that refuses every write,
files that vanish) and when is drawn from --seed: in the first 0.1 s, while the run starts, in the middle of a step,
while a checkpoint is being written, between its renaming and its marker, while an old one is removed. Of several
processes, signals come to the command or to one of its processes. Every third start has a home that cannot be written
and a clock that jumps by an hour. Exit code 0 if every run resumed from a complete checkpoint, what was asked to end
had saved all it did, nothing showed a traceback, and the final weights, averages, optimizer states and losses are those
of the undisturbed run, bit for bit.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import runs, tiny

SIGNALS = {name: getattr(signal, f"SIG{name}") for name in ("KILL", "INT", "TERM", "HUP")}
KINDS = (*SIGNALS, "closed stdout", "full disk", "vanished files")
MOMENTS = ("first 0.1 s", "starting", "step", "step", "writing", "renamed", "removing")
STARTED_AT = re.compile(r"steps (\d+) to (\d+)")
SAVED = re.compile(r"interrupted after step (\d+): saved")
PATIENCE_SECONDS = 300.0
BAD_WORDS = ("Traceback (most recent call last)", "Exception ignored", "terminate called")

# Read by Python at its start: time.time jumps by an hour every two seconds. What torch does in C++ keeps its clock.
JUMPING_CLOCK = """
import time
_time, _begun = time.time, time.monotonic()
time.time = lambda: _time() + 3600.0 * (int(time.monotonic() - _begun) // 2 % 3 - 1)
"""


@dataclass
class Soak:
    """One disturbed run."""

    command: list[str]
    folder: Path
    """Of the run."""
    random: random.Random
    num_processes: int
    kinds: list[str] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def disturb_once(self, number: int) -> str:
        """Start or resume, disturb at a drawn moment; returns what happened."""
        if not self.kinds:
            self.kinds = self.random.sample(KINDS, len(KINDS))
        kind, moment = self.kinds.pop(), self.random.choice(MOMENTS)
        if kind in ("closed stdout", "vanished files") and moment in ("first 0.1 s", "starting"):
            moment = "step"  # it goes on afterwards, which must be seen
        before, log = self.complete(), self.folder.parent / f"{self.folder.name}.{number}.txt"
        process = self.start(log, readable=kind == "closed stdout", hostile=number % 3 == 0)
        self.wait_for(moment, process)
        ended, hears = process.poll() is not None, _hears(process)
        said = "" if ended else self.disturb(kind, process)
        if ended:
            raise SystemExit(f"kill {number}: the run ended by itself ({moment}): {log.read_text()[-2000:]}")
        self.require_sound(number)
        text = log.read_text(errors="replace")
        if hears and any(word in text for word in BAD_WORDS):
            raise SystemExit(f"kill {number} ({kind}, {moment}):\n{text[-4000:]}")
        self.require_saved(number, kind, moment, process, text)
        self.counts[kind] += 1
        newest = max(self.complete(), default=0)
        return f"{kind:<14} {moment:<11} {said:<9} began at {self.started_at(log, before)}, newest now {newest}"

    def start(self, log: Path, *, readable: bool, hostile: bool) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if hostile:
            patch = self.folder.parent / "clock"
            patch.mkdir(exist_ok=True)
            (patch / "sitecustomize.py").write_text(JUMPING_CLOCK)
            environment["PYTHONPATH"] = os.pathsep.join([str(patch), environment["PYTHONPATH"]])
            nowhere = "/dev/null/nowhere"  # cannot be made or written, not even by root
            names = ("HOME", "HF_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME")
            environment |= dict.fromkeys(names, nowhere)
        if not readable:
            with log.open("w") as out:
                return subprocess.Popen(
                    self.words(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
                )
        # Through a pipe whose reader (`cat`, into the log) is ended to close it.
        script = '"$@" 2>&1 | exec cat > "$0"'
        shell = ["bash", "-c", f"set -o pipefail; {script}", str(log), *self.words()]
        return subprocess.Popen(shell, start_new_session=True, env=environment)

    def disturb(self, kind: str, process: subprocess.Popen[bytes]) -> str:
        """Do it, and wait until all processes are gone; returns to whom it was done."""
        family = _family(process)
        ours = [one for one in family if one.name() not in ("bash", "cat")] if kind == "closed stdout" else family
        target = self.random.choice(ours[: self.num_processes + 1])
        said = "command" if target is ours[0] else "a process"
        if kind == "closed stdout":
            for one in family:
                if one.name() == "cat":
                    one.kill()
            self.await_steps(process, 3)
            ours[0].send_signal(signal.SIGTERM)
            said = "command"
        elif kind == "vanished files":
            (self.folder / "log.txt").unlink(missing_ok=True)
            for name in ("tensorboard", "samples"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            self.await_steps(process, 3)
            ours[0].send_signal(signal.SIGTERM)
            said = "command"
        elif kind == "full disk":
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    _, hard = one.rlimit(psutil.RLIMIT_FSIZE)
                    one.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
            said = "all"
        else:
            target.send_signal(SIGNALS[kind])
        family += [one for one in _family(process) if one not in family]  # those that were starting
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
        if alive:
            raise SystemExit(f"{len(alive)} processes outlive {kind} to {said} by {PATIENCE_SECONDS:.0f} s")
        process.wait()
        return said

    def await_steps(self, process: subprocess.Popen[bytes], count: int) -> None:
        """It goes on: `count` more steps are recorded."""
        limit, wanted = time.monotonic() + PATIENCE_SECONDS, self.num_steps() + count
        while self.num_steps() < wanted:
            if process.poll() is not None or time.monotonic() > limit:
                raise SystemExit("the run did not go on")
            time.sleep(0.01)

    def require_saved(self, number: int, kind: str, moment: str, process: subprocess.Popen[bytes], text: str) -> None:
        """What was asked to end has saved its last step, and said so in log.txt, or had not begun one."""
        if kind in ("KILL", "full disk"):
            return
        log = self.folder / "log.txt"
        saved = SAVED.findall(log.read_text() if log.is_file() else "")
        if process.returncode == 0 and (not saved or int(saved[-1]) not in self.complete()):
            raise SystemExit(f"kill {number} ({kind}, {moment}): ended with 0 and has not saved:\n{text[-2000:]}")
        if moment in ("step", "writing") and process.returncode != 0:
            raise SystemExit(
                f"kill {number} ({kind}, {moment}): ended with {process.returncode} in the middle of training:\n"
                f"{text[-2000:]}"
            )

    def finish(self) -> int:
        before = self.complete()
        log = self.folder.parent / f"{self.folder.name}.last.txt"
        with log.open("w") as out:
            subprocess.run(self.words(), stdout=out, stderr=subprocess.STDOUT, check=True)
        return self.started_at(log, before)

    def words(self) -> list[str]:
        return [*self.command, "--resume"] if (self.folder / "config.yaml").exists() else self.command

    def wait_for(self, moment: str, process: subprocess.Popen[bytes]) -> None:
        limit = time.monotonic() + PATIENCE_SECONDS
        if moment == "first 0.1 s":
            time.sleep(self.random.uniform(0.0, 0.1))
            return
        if moment == "starting":
            time.sleep(self.random.uniform(0.1, 8.0))
            return
        steps_before, wanted = self.num_steps(), self.random.randint(1, 12)
        marked, stale, stale_unmarked = self.complete(), self.partial(), self.unmarked()
        while process.poll() is None and time.monotonic() < limit:
            if moment == "step" and self.num_steps() >= steps_before + wanted:
                time.sleep(self.random.uniform(0.0, 0.2))
                return
            if moment == "writing" and self.partial() - stale:
                time.sleep(self.random.uniform(0.0, 0.02))
                return
            if moment in ("renamed", "removing") and self.unmarked() - stale_unmarked:
                return
            if moment in ("renamed", "removing") and len(self.complete() - marked) > 3:
                return  # the window is shorter than this loop; four checkpoints went by
            time.sleep(0.0005)

    def partial(self) -> set[tuple[str, int]]:
        """Name and inode of checkpoints that are being written, or were when a process ended."""
        found = set()
        for path in self.checkpoints.glob(".step-*"):
            try:
                found.add((path.name, path.stat().st_ino))
            except FileNotFoundError:  # renamed meanwhile
                continue
        return found

    def unmarked(self) -> set[str]:
        """Names of checkpoints between renaming and marker, or half removed."""
        return {path.name for path in self.checkpoints.glob("step-*") if not (path / "COMPLETE").exists()}

    def complete(self) -> set[int]:
        """Steps whose marker and every byte are there; judged without the code under test."""
        found = set()
        for marker in self.checkpoints.glob("step-*/COMPLETE"):
            try:
                files = json.loads(marker.read_text())
                good = all(
                    hashlib.sha256((marker.parent / name).read_bytes()).hexdigest() == one["sha256"]
                    for name, one in files.items()
                )
            except (OSError, ValueError):  # being removed
                continue
            if good:
                found.add(int(marker.parent.name.removeprefix("step-")))
        return found

    def require_sound(self, number: int) -> None:
        marked = {int(m.parent.name.removeprefix("step-")) for m in self.checkpoints.glob("step-*/COMPLETE")}
        if marked != self.complete():
            raise SystemExit(f"kill {number}: marked complete but damaged: {sorted(marked - self.complete())}")

    def num_steps(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.read_bytes().count(b'"kind": "train"') if file.exists() else 0

    def started_at(self, log: Path, before: set[int]) -> str | int:
        found = STARTED_AT.search(log.read_text())
        if found is None:
            return "(not reached)"
        step = int(found[1])
        if step != max(before, default=0):
            raise SystemExit(
                f"{log}: went on from step {step}, the newest complete checkpoint was {max(before, default=0)}"
            )
        return step


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _hears(process: subprocess.Popen[bytes]) -> bool:
    """Whether the command has come so far as to catch SIGHUP; before that, Python itself is starting."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\t(\w+)$", status, re.MULTILINE)
    return caught is None or bool(int(caught[1], 16) & 1)


def command(folders: dict[str, Path], output: Path, name: str, asked: argparse.Namespace) -> list[str]:
    often = ("train.validate_every=7", "checkpoint.every_steps=3", "checkpoint.keep_last=2")
    words = runs.command(folders, output, name, asked.steps, *often, "diagnostics.statistics_every=5", *asked.set)
    return [*words, "--processes", str(asked.processes)]


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(record["step"], record["loss"], record.get("grad_norm", 0.0)) for record in runs.records(run)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration")
    asked = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        folders = tiny.stage_folder(output / "small")
        whole = command(folders, output, "whole", asked)
        print(f"undisturbed: {asked.steps} steps", flush=True)
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
        words = command(folders, output, "killed", asked)
        soak = Soak(words, output / "killed", random.Random(asked.seed), asked.processes)
        for number in range(1, asked.kills + 1):
            print(f"kill {number:>2}/{asked.kills}: {soak.disturb_once(number)}", flush=True)
        print(f"last: started at step {soak.finish()}")
        wanted, got = (runs.tensors(folder, asked.steps) for folder in (output / "whole", soak.folder))
        different = [name for name in wanted if not torch.equal(wanted[name], got[name])]
        same_losses = losses(output / "whole") == losses(soak.folder)
    print(", ".join(f"{count} x {kind}" for kind, count in sorted(soak.counts.items())))
    compared = f"{len(wanted)} tensors, {len(different)} differ; losses equal: {same_losses}"
    print(f"{asked.kills} of {asked.kills} resumed; {compared}")
    return 0 if wanted and wanted.keys() == got.keys() and not different and same_losses else 1


if __name__ == "__main__":
    sys.exit(main())
