"""One host's loop, run with a fault in it and without, and what became of it."""

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Verdict
from diagnostics.files import read_text
from shadowlab.bench.hosts import net as net_file
from shadowlab.bench.hosts.host import Host
from shadowlab.bench.hosts.net import PHASES, Phase, Samples, made_net

ACCUMULATIONS = (1, 4)
_BAD_SAMPLE = 2


@dataclass(frozen=True)
class Row:
    """A host with an accumulation."""

    host: str
    num_added: int
    accumulation: int
    wrong: dict[str, str]
    """Phase -> what was not right, "" where all was; the last entry, `same bits`, is of a run without a fault."""

    @property
    def passed(self) -> bool:
        """Whether everything was right, with at most five lines."""
        return not any(self.wrong.values()) and self.num_added <= 5

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many. Only the last one's samples are bad."""

    rank: int = 0
    num: int = 1

    @property
    def is_bad(self) -> bool:
        return self.rank == self.num - 1


def try_host(host: Host, accumulation: int, ranks: Ranks) -> Row:
    """Every fault in turn, then a run without one."""
    watched, bare = host.watched(), host.bare()
    before = _weights_before(bare, accumulation, ranks)
    wrong = {phase: _fault(watched, before, phase, accumulation, ranks) for phase in PHASES}
    return Row(
        host.name, host.num_added, accumulation, wrong | {"same bits": _sameness(watched, bare, accumulation, ranks)}
    )


def _sameness(watched: ModuleType, bare: ModuleType, accumulation: int, ranks: Ranks) -> str:
    with tempfile.TemporaryDirectory() as folder:
        samples = Samples(2 * accumulation, ranks.rank)
        first, error = _run(bare, samples, accumulation, 1e-8, Path(folder))
        second, alarm = _run(watched, samples, accumulation, 1e-8, Path(folder))
    if error or alarm:
        return str(error or alarm)
    return "" if _same(first, second) else "other weights with the watch than without"


def _weights_before(bare: ModuleType, accumulation: int, ranks: Ranks) -> nn.Module:
    """The model after the first step: faults happen in the second."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(bare, Samples(accumulation, ranks.rank), accumulation, 1e-8, Path(folder))[0]


def _fault(watched: ModuleType, before: nn.Module, phase: Phase, accumulation: int, ranks: Ranks) -> str:
    """What is not right; "" where all is. before: as it is to be afterwards."""
    is_first = phase == "optimizer"  # it divides 0 by 0 at its first step
    last = accumulation - 1 if is_first else accumulation + accumulation // 2
    eps = 0.0 if is_first else 1e-8
    samples = Samples(2 * accumulation, ranks.rank)
    if ranks.is_bad or is_first:
        samples.break_sample(phase, last, _BAD_SAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        model, error = _run(watched, samples, accumulation, eps, Path(folder))
        if not isinstance(error, NonFiniteError):
            return f"no verdict ({'nothing was raised' if error is None else f'{type(error).__name__}: {error}'})"
        found = _judged(error.verdict, phase, last, ranks)
        if not _same(model, made_net() if is_first else before):
            found.append("weights are not those before the step")
        if not error.is_restored:
            found.append("said not to be restored")
        is_written = error.incident is not None and (error.incident / "verdict.json").is_file()
        if not is_written and error.verdict.rank in (None, ranks.rank):
            found.append("no incident")
    return "; ".join(found)


def _judged(verdict: Verdict, phase: Phase, step: int, ranks: Ranks) -> list[str]:
    """What in a verdict is not as it should be."""
    found = [] if verdict.phase == phase else [f"phase {verdict.phase}"]
    if verdict.step != step:
        found.append(f"step {verdict.step}, not {step}")
    if not verdict.reproducible:
        found.append("not reproduced")
    if phase == "optimizer":
        return found if str(verdict.parameter).endswith(("weight", "bias")) else [*found, f"names {verdict.parameter}"]
    if verdict.samples != (_BAD_SAMPLE,):
        found.append(f"samples {verdict.samples}")
    if ranks.num > 1 and verdict.rank != ranks.num - 1:
        found.append(f"rank {verdict.rank}")
    if phase == "data":
        return found if verdict.parameter == "x" else [*found, f"names {verdict.parameter}"]
    path, _, line = str(verdict.source).rpartition(":")
    text = read_text(net_file.__file__).splitlines()
    if not (path == net_file.__file__ and text[int(line) - 1].endswith(f"# {phase}")):
        found.append(f"source {verdict.source}")
    return found


def _run(
    loop: ModuleType, samples: Samples, accumulation: int, eps: float, incidents: Path
) -> tuple[nn.Module, Exception | None]:
    """The model afterwards, and what was raised."""
    model = made_net()
    torch.manual_seed(2)
    with _quiet():
        try:
            loop.train(model, samples, accumulation, eps, incidents)
        except Exception as error:  # the host's own, too: a line of the table says so
            return model, error
    return model, None


def _same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(_whole(a), _whole(b)) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def _whole(tensor: Tensor) -> Tensor:
    """Of a sharded one, too; any shape."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a host says of itself is not said; what it keeps from run to run is forgotten."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        GradientState._reset_state()
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
