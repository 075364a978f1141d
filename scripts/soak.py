"""Kill a training run again and again, resume it each time, and compare its end with a run that nobody disturbed.

    python scripts/soak.py --kills 40            # needs a checkout; about ten minutes on 2 cores
    python scripts/soak.py --kills 10 --processes 2

SIGKILL comes at moments drawn from --seed: while the run starts, in the middle of a step, while a checkpoint is being
written, between its renaming and its marker, while an old one is removed. Exit code 0 if every run resumed from a
complete checkpoint and the final weights, averages, optimizer states and losses are those of the undisturbed run,
bit for bit.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import runs, tiny

MOMENTS = ("starting", "step", "step", "writing", "renamed", "removing")
STARTED_AT = re.compile(r"steps (\d+) to (\d+)")
PATIENCE_SECONDS = 300.0


@dataclass
class Soak:
    """One disturbed run."""

    command: list[str]
    folder: Path
    """Of the run."""
    random: random.Random
    num_processes: int

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def kill_once(self, number: int) -> str:
        """Start or resume, kill at a drawn moment; returns what happened."""
        before = self.complete()
        log = self.folder.parent / f"{self.folder.name}.{number}.txt"
        with log.open("w") as out:
            process = subprocess.Popen(self.words(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        moment = self.random.choice(MOMENTS)
        self.wait_for(moment, process)
        ended = process.poll() is not None
        self.kill(process)
        if ended:
            raise SystemExit(f"kill {number}: the run ended by itself ({moment}): {log.read_text()[-2000:]}")
        self.require_sound(number)
        newest = max(self.complete(), default=0)
        return f"{moment:<9} started at step {self.started_at(log, before)}, newest now {newest}"

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
        if moment == "starting":
            time.sleep(self.random.uniform(0.0, 8.0))
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

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the command, or to one of its processes; then wait until all are gone."""
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self.random.choice(family[: self.num_processes + 1]).send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=60)
        if alive:
            raise SystemExit(f"{len(alive)} processes outlive the one that was killed by a minute")
        process.wait()

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


def command(folders: dict[str, Path], output: Path, name: str, num_steps: int, num_processes: int) -> list[str]:
    often = ("train.validate_every=7", "checkpoint.every_steps=3", "checkpoint.keep_last=2")
    words = runs.command(folders, output, name, num_steps, *often, "diagnostics.statistics_every=5")
    return [*words, "--processes", str(num_processes)]


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(record["step"], record["loss"], record.get("grad_norm", 0.0)) for record in runs.records(run)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        folders = tiny.stage_folder(output / "small")
        whole = command(folders, output, "whole", asked.steps, asked.processes)
        print(f"undisturbed: {asked.steps} steps", flush=True)
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
        words = command(folders, output, "killed", asked.steps, asked.processes)
        soak = Soak(words, output / "killed", random.Random(asked.seed), asked.processes)
        for number in range(1, asked.kills + 1):
            print(f"kill {number:>2}/{asked.kills}: {soak.kill_once(number)}", flush=True)
        print(f"last: started at step {soak.finish()}")
        wanted, got = (runs.tensors(folder, asked.steps) for folder in (output / "whole", soak.folder))
        different = [name for name in wanted if not torch.equal(wanted[name], got[name])]
        same_losses = losses(output / "whole") == losses(soak.folder)
    compared = f"{len(wanted)} tensors, {len(different)} differ; losses equal: {same_losses}"
    print(f"{asked.kills} of {asked.kills} resumed; {compared}")
    return 0 if wanted and wanted.keys() == got.keys() and not different and same_losses else 1


if __name__ == "__main__":
    sys.exit(main())
