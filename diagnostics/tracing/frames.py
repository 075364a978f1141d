"""Which line of the user's code is running, and inside which well-known function of a training step."""

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType

import torch
import torch.fx.traceback

from diagnostics.patching import replaced

_PACKAGE = Path(__file__).resolve().parents[1]  # diagnostics: its own lines are nobody's to fix
_OWN_FOLDERS = (f"{Path(torch.__file__).resolve().parent}/", f"{_PACKAGE}/")
_PYTHON_FOLDER = f"{Path(sysconfig.get_paths()['stdlib']).resolve()}/"

_TYPED = ("<stdin>", "<python-input", "<ipython-input", "<console>", "<cell", "<input>")  # where a person writes lines

# (end of the file's path, functions or None for all, what it means). A subphase of a step shows in nothing else:
# the operators of clipping are ordinary norms and products.
_KNOWN_FUNCTIONS: tuple[tuple[str, frozenset[str] | None, str], ...] = (
    ("torch/amp/grad_scaler.py", frozenset({"unscale_", "_unscale_grads_"}), "unscale"),
    ("torch/amp/grad_scaler.py", frozenset({"scale", "apply_scale"}), "scale"),
    ("torch/amp/grad_scaler.py", None, "scaler"),
    ("torch/nn/utils/clip_grad.py", None, "clip"),
    ("torch/optim/swa_utils.py", None, "ema"),
    ("diffusers/training_utils.py", frozenset({"step", "get_decay"}), "ema"),
    ("torch/serialization.py", None, "checkpoint"),
    ("safetensors/torch.py", None, "checkpoint"),
    ("torch/utils/checkpoint.py", None, "recomputation"),
    ("torch/autograd/function.py", frozenset({"apply"}), "custom_function"),
)


@lru_cache(maxsize=4096)
def is_library(filename: str) -> bool:
    """Whether a file belongs to torch, this package or Python itself, and so is nobody's line to fix."""
    if filename.startswith("<"):
        return not filename.startswith(_TYPED)
    resolved = str(Path(filename).resolve())
    if resolved.startswith(_OWN_FOLDERS):
        return True
    return resolved.startswith(_PYTHON_FOLDER) and "/site-packages/" not in resolved


@lru_cache(maxsize=4096)
def _marks_of(filename: str, function: str) -> tuple[str, ...]:
    return tuple(
        mark for end, names, mark in _KNOWN_FUNCTIONS if filename.endswith(end) and (names is None or function in names)
    )


def _stack(start: FrameType | None) -> Iterator[FrameType]:
    while start is not None:
        yield start
        start = start.f_back


def user_line() -> str | None:
    """`path:line` of the innermost frame that is neither torch's, Python's nor this package's."""
    for frame in _stack(sys._getframe(1)):
        if not is_library(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return None


def marks() -> frozenset[str]:
    """Inside which functions of `_KNOWN_FUNCTIONS` the caller runs."""
    found: set[str] = set()
    for frame in _stack(sys._getframe(1)):
        found.update(_marks_of(frame.f_code.co_filename, frame.f_code.co_name))
    return frozenset(found)


class CreationRecord(str):
    """What an autograd node remembers of the forward call it differentiates. A string, as torch expects there."""

    source: str | None
    """The user's line, `path:line`."""
    module: str | None
    """Dotted name."""


def creation_record(node: object) -> CreationRecord | None:
    """The record of a node made inside `recording_creations`; None for one made outside it."""
    stack = getattr(node, "metadata", {}).get("traceback_") or [None]
    return stack[-1] if isinstance(stack[-1], CreationRecord) else None


@contextmanager
def recording_creations(current_module: Callable[[], str | None]) -> Iterator[None]:
    """Every autograd node made inside remembers source line and module (`current_module()` gives the name).

    Uses anomaly mode without its NaN check (that check crashes on DTensor), whose formatted stack is replaced by one
    short record: formatting thirty frames for each of thousands of nodes would cost more than the step.
    """

    def record() -> list[str]:
        source = user_line()
        entry = CreationRecord(f"  at {source}\n")
        entry.source, entry.module = source, current_module()
        return [entry]

    with (
        replaced(torch.fx.traceback, "format_stack", lambda original: record),
        torch.autograd.set_detect_anomaly(True, check_nan=False),
    ):
        yield
