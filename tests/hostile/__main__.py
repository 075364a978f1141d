"""Every attack on every command that reads what it changes."""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from tests.hostile.attacks import all_attacks
from tests.hostile.commands import COMMANDS
from tests.hostile.trial import run_trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--kinds", help="of attacks, with commas between them")
    parser.add_argument("--commands", help="by their first words, with commas between them")
    parser.add_argument("--every", type=int, default=1, help="of all trials only each so many")
    parser.add_argument("--first", type=int, default=0, help="where to begin with that")
    parser.add_argument("--verbose", action="store_true", help="what each trial printed")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    attacks = [one for one in all_attacks() if asked.kinds is None or one.kind in asked.kinds.split(",")]
    commands = [one for one in COMMANDS if asked.commands is None or one.words[0] in asked.commands.split(",")]
    pairs = [(attack, command) for attack in attacks for command in commands if command.reads(attack.file)]
    pairs = pairs[asked.first :: asked.every]
    print(f"{len(attacks)} attacks, {len(commands)} commands, {len(pairs)} trials", flush=True)
    faults: Counter[str] = Counter()
    began, slowest = time.monotonic(), (0.0, "")
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        for number, (attack, command) in enumerate(pairs, 1):
            trial = run_trial(attack, command, Path(folder))
            slowest = max(slowest, (trial.seconds, trial.name))
            for fault in trial.faults:
                faults[fault.partition(":")[0]] += 1
                print(f"FAULT {trial.name!a}\n      {fault!a}", flush=True)
            if asked.verbose:
                print(f"--- {trial.name!a} ({trial.seconds:.1f} s)\n{trial.output[-400:]!a}", flush=True)
            if number % 500 == 0:
                print(f"{number} of {len(pairs)}, {time.monotonic() - began:.0f} s, faults {dict(faults)}", flush=True)
    print(f"{len(pairs)} trials in {time.monotonic() - began:.0f} s, slowest {slowest[0]:.1f} s ({slowest[1]!a})")
    print(f"faults: {dict(faults) or 'none'}")
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
