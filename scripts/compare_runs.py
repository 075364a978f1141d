"""Compare two folders of runs: what one version of the code came to, and what another did.

Make the same runs and latent caches with both, under the same names (--run), on the same machine, then:

    python scripts/compare_runs.py OLD_DIR NEW_DIR
    python scripts/compare_runs.py OLD_DIR NEW_DIR --ignore charts      # a key of records that is meant to be new

Compared below both folders: every tensor of every .safetensors file bit for bit (weights, averages, optimizer states,
latents, states of incidents), every line of metrics.jsonl except times and memory, and every verdict.txt except where
the code lies. Exit code 0: all is equal. 1: what differs is listed. 2: there is nothing to compare.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# What the machine and its load decide, not the code.
TIMES = frozenset({"step_seconds", "data_wait_seconds", "data_wait_share", "memory_gib"})
_FOLDER = re.compile(r"[^\s\"']*/(?=(?:diagnostics|shadowlab|cli|site-packages)/)")
_LINE = re.compile(r"(?<=\.py):\d+")


@dataclass(frozen=True)
class Kind:
    """One kind of file that is compared."""

    pattern: str
    noun: str
    """What is counted."""


KINDS = (Kind("*.safetensors", "tensors"), Kind("metrics.jsonl", "records"), Kind("verdict.txt", "lines"))


def digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes of a dense tensor of any shape, on any device."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def measured(value: Any, ignored: Collection[str] = ()) -> Any:
    """A record, or what it holds, without times, memory and the keys in `ignored`."""
    if isinstance(value, dict):
        return {k: measured(v, ignored) for k, v in value.items() if k not in TIMES and k not in ignored}
    if isinstance(value, list):
        return [measured(item, ignored) for item in value]
    return without_places(value) if isinstance(value, str) else value


def without_places(text: str) -> str:
    """`text` without the folders in which the code lies, and without line numbers."""
    return _LINE.sub("", _FOLDER.sub("", text))


def contents(file: Path, ignored: Collection[str] = ()) -> dict[str, Any]:
    """What of a file is compared: name of each part -> something that can be compared."""
    if file.suffix == ".safetensors":
        return load_file(file)
    lines = file.read_text(encoding="utf-8").splitlines()
    if file.suffix == ".jsonl":
        found = [measured(json.loads(line), ignored) for line in lines]
        return {f"line {n}": record for n, record in enumerate(found, start=1)}
    return {f"line {n}": without_places(line) for n, line in enumerate(lines, start=1)}


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """`place: old -> new` for each innermost value that is not the same in both."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif old != new:
        yield f"{where}: {_short(old)} -> {_short(new)}"


def tensor_differences(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Iterator[str]:
    """How many tensors differ, and the one that differs most."""
    for name in sorted(old.keys() ^ new.keys()):
        yield f"{name}: only in the {'old' if name in old else 'new'} file"
    changed = [name for name in sorted(old.keys() & new.keys()) if digest(old[name]) != digest(new[name])]
    distances = {name: _distance(old[name], new[name]) for name in changed}
    if changed:
        name = max(changed, key=lambda name: math.inf if math.isnan(distances[name]) else distances[name])
        yield f"{len(changed)} of {len(old)} tensors differ, most {name}: by {distances[name]:.3g} at most"


def _distance(old: Tensor, new: Tensor) -> float:
    """The largest difference of two tensors; inf where shape or dtype is another."""
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return math.inf
    return float((new.double() - old.double()).abs().max())


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def compare(old: Path, new: Path, ignored: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """What was compared, a line for each kind of file; and what differs, `file: part: how`."""
    done, found = [], []
    for kind in KINDS:
        names = [{file.relative_to(folder) for file in folder.rglob(kind.pattern)} for folder in (old, new)]
        for name in sorted(names[0] ^ names[1]):
            found.append(f"{name}: only in {old if name in names[0] else new}")
        count = 0
        for name in sorted(names[0] & names[1]):
            before, after = contents(old / name, ignored), contents(new / name, ignored)
            count += len(before)
            differ = tensor_differences if name.suffix == ".safetensors" else differences
            found += [f"{name}: {line}" for line in differ(before, after)]
        done.append(f"{count} {kind.noun} of {len(names[0] & names[1])} files {kind.pattern}")
    return done, found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--ignore", action="append", default=[], metavar="KEY", help="a key of records to leave out")
    arguments = parser.parse_args(words)
    for folder in (arguments.old, arguments.new):
        if not any(next(folder.rglob(kind.pattern), None) for kind in KINDS):
            print(f"{folder}: no run and no latent cache in it", file=sys.stderr)
            return 2
    done, found = compare(arguments.old, arguments.new, arguments.ignore)
    print("compared: " + ", ".join(done))
    print("\n".join(found) if found else "equal")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
