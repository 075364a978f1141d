"""One loop under one tool, and what became of it."""

import contextlib
import io
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from diagnostics import NonFiniteError
from shadowlab.bench.case_trial import quiet
from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.tools import Said, Tool


@dataclass(frozen=True)
class Trial:
    """What a tool said of a loop."""

    said: tuple[Said, ...]
    error: str | None
    """What the loop ended with and should not have."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Trial":
        return cls(tuple(Said(**one) for one in found["said"]), found["error"], found["seconds"])


def tried(case: Case, tool: Tool) -> Trial:
    """The loop from the same seeds, silently; nothing that it changes around it is left behind."""
    return run_with(case, tool.make())


def run_with(case: Case, watching: Any) -> Trial:
    """As `tried`, with a tool that the caller keeps. What a tool leaves in the working folder is thrown away."""
    start, error = time.perf_counter(), None
    with quiet(), _unheard(), _as_before(), tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        random.seed(0)
        np.random.seed(0)
        try:
            case.loop(watching)
        except Exception as caught:  # one loop that ends early must not hide the others
            if case.healthy or not isinstance(caught, NonFiniteError):  # a fault may end in what the watch stops at
                error = (f"{type(caught).__name__}: {caught}".splitlines() or [type(caught).__name__])[0]
        finally:
            with contextlib.suppress(RuntimeError):
                watching.close()
    return Trial(tuple(watching.said()), error, time.perf_counter() - start)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Neither prints nor logs reach the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Python's and NumPy's randomness, torch's threads, and accelerate's singletons are put back."""
    kept, kept_numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        random.setstate(kept)
        np.random.set_state(kept_numpy)
        torch.set_num_threads(threads)
        if "accelerate" in sys.modules:
            from accelerate.state import AcceleratorState, GradientState

            AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
            GradientState._reset_state()
