"""Which line of the user's code is running, and inside which well-known function of a training step."""

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType

import torch
import torch.fx.traceback

from diagnostics.patching import replaced

_PACKAGE = Path(__file__).resolve().parents[1]  # diagnostics: its own lines are nobody's to fix
_LIBRARIES = [f"{Path(torch.__file__).resolve().parent}/", f"{_PACKAGE}/"]
_PYTHON_FOLDER = f"{Path(sysconfig.get_paths()['stdlib']).resolve()}/"

_SCRIPTS = f"{Path(sysconfig.get_paths()['scripts'])}/"
_NO_HOOKS = frozenset({"engine", "custom_function", "recomputation"})

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
    ("torch/autograd/graph.py", frozenset({"_engine_run_backward"}), "engine"),
)


@lru_cache(maxsize=4096)
def is_library(filename: str) -> bool:
    """Whether a file belongs to torch, this package or Python itself, and so is nobody's line to fix."""
    if filename.startswith("<"):
        return not filename.startswith(_TYPED)
    resolved = str(Path(filename).resolve())
    if resolved.startswith(tuple(_LIBRARIES)):
        return True
    return resolved.startswith(_PYTHON_FOLDER) and "/site-packages/" not in resolved


def add_library(folder: Path) -> None:
    """From now on the code below a folder is nobody's line to fix: it only stands around a loop of others."""
    place = f"{folder.resolve()}/"
    if place not in _LIBRARIES:
        _LIBRARIES.append(place)
        is_library.cache_clear()


@lru_cache(maxsize=4096)
def _marks_of(filename: str, function: str) -> tuple[str, ...]:
    return tuple(
        mark for end, names, mark in _KNOWN_FUNCTIONS if filename.endswith(end) and (names is None or function in names)
    )


@lru_cache(maxsize=4096)
def _is_installed(filename: str) -> bool:
    """Whether a file was installed rather than written for this training: diffusers, einops, an entry script."""
    return "/site-packages/" in filename or "/dist-packages/" in filename or filename.startswith(_SCRIPTS)


@dataclass(frozen=True, slots=True)
class _Code:
    """What is known of a function's code."""

    code: CodeType
    """Held, so that its `id` stays its own: comparing two of them takes longer than a look at the stack."""
    is_library: bool
    is_installed: bool
    """By somebody else, so that the line of who calls it is the one to look at."""
    marks: tuple[str, ...]
    lines: dict[int, str]
    """Instruction -> `path:line`; finding a line takes the longer the farther down it stands."""


_CODES: dict[int, _Code] = {}
_MOST_CODES = 50_000  # a program that makes code as it runs must not fill the memory


def _known(code: CodeType) -> _Code:
    found = _CODES.get(id(code))
    if found is None:
        if len(_CODES) >= _MOST_CODES:
            _CODES.clear()
        file = code.co_filename
        found = _CODES[id(code)] = _Code(code, is_library(file), _is_installed(file), _marks_of(file, code.co_name), {})
    return found


def _line(frame: FrameType, known: _Code) -> str:
    line = known.lines.get(frame.f_lasti)
    if line is None:
        line = known.lines[frame.f_lasti] = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return line


def user_line() -> str | None:
    """`path:line` of the innermost frame of the user's own code: neither torch's, Python's, this package's, nor one of
    an installed library, unless there are no others."""
    frame: FrameType | None = sys._getframe(1)
    library = None
    while frame is not None:
        known = _CODES.get(id(frame.f_code)) or _known(frame.f_code)
        if not known.is_library:
            if not known.is_installed:
                return _line(frame, known)
            library = library or _line(frame, known)
        frame = frame.f_back
    return library


def library_line() -> str | None:
    """`path:line` in the installed library, other than torch, that the user's code has called; None where it calls
    torch itself."""
    frame: FrameType | None = sys._getframe(1)
    library = None
    while frame is not None:
        known = _CODES.get(id(frame.f_code)) or _known(frame.f_code)
        if not known.is_library:
            if not known.is_installed:
                return library
            library = library or _line(frame, known)
        frame = frame.f_back
    return None


def hook_line() -> str | None:
    """`path:line` in a hook of the user's that autograd runs; None elsewhere, in an autograd function's backward and
    where a forward pass is repeated."""
    frame: FrameType | None = sys._getframe(1)
    line = None
    while frame is not None:
        known = _CODES.get(id(frame.f_code)) or _known(frame.f_code)
        if known.marks and not _NO_HOOKS.isdisjoint(known.marks):
            return line if "engine" in known.marks else None
        if line is None and not known.is_library and not known.is_installed:
            line = _line(frame, known)
        frame = frame.f_back
    return line  # the engine's own thread


def marks() -> frozenset[str]:
    """Inside which functions of `_KNOWN_FUNCTIONS` the caller runs."""
    found: set[str] = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        known = _CODES.get(id(frame.f_code)) or _known(frame.f_code)
        if known.marks:
            found.update(known.marks)
        frame = frame.f_back
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

    entries: dict[tuple[str | None, str | None], CreationRecord] = {}

    def record() -> list[str]:
        place = user_line(), current_module()
        entry = entries.get(place)
        if entry is None:
            entry = entries[place] = CreationRecord(f"  at {place[0]}\n")
            entry.source, entry.module = place
        return [entry]

    with (
        replaced(torch.fx.traceback, "format_stack", lambda original: record),
        torch.autograd.set_detect_anomaly(True, check_nan=False),
    ):
        yield
