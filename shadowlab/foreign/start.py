"""Where a script's random numbers begin, kept so that a second run may begin there, too."""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diagnostics.files import paths_in, read_json, replace_text

FILE = "rerun.json"


class Start:
    """State of the generators of Python, NumPy and torch before a script runs. A script that seeds them itself does not
    need it; one that makes generators from the machine's entropy is not helped by it."""

    def __init__(self) -> None:
        self.folder = str(Path.cwd())
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = None if numpy is None else numpy.random.get_state()
        self._torch = torch.get_rng_state()

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"python": self._python, "torch": bytes(self._torch.tolist()).hex()}
        if self._numpy is not None:
            kind, key, *rest = self._numpy
            found["numpy"] = [kind, key.tolist(), *rest]
        return found


def restore_start(content: dict[str, Any]) -> None:
    """Begin where another run began.

    Raises:
        ValueError, TypeError, KeyError: it is damaged.
    """
    version, key, gauss = content["python"]
    random.setstate((version, tuple(key), gauss))
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in content:
        kind, key, *rest = content["numpy"]
        numpy.random.set_state((kind, numpy.array(key, dtype="uint32"), *rest))
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(content["torch"])), dtype=torch.uint8))


def keep_rerun(incident: Path, words: Sequence[str], start: Start, losses: dict[int, list[float]]) -> None:
    """Write into an incident's folder what a second run needs, and what to compare it by.

    Args:
        words: the script and its arguments. losses: 0-based step -> what it differentiated.

    Raises:
        OSError: the disk refuses it.
    """
    texts = {str(step): [repr(loss) for loss in values] for step, values in losses.items()}
    content = {"script": list(words), "cwd": start.folder, "losses": texts, "start": start.to_json()}
    replace_text(incident / FILE, json.dumps(content) + "\n")


def find_rerun(incidents: Path, step: int, words: Sequence[str]) -> dict[str, Any] | None:
    """What the newest incident of this 1-based step, by the same command in the same folder, kept; None without one."""
    for folder in sorted(paths_in(incidents, f"step-{step:08d}*/{FILE}"), reverse=True):
        try:
            content = read_json(folder, inside=incidents)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("script") == list(words) and content.get("cwd") == str(Path.cwd()):
            return content
    return None
