"""Which values a step reads on the host, in which part of it, and who asked for them."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diagnostics
from shadowlab.bench.trial import Trial

_OWN = os.path.dirname(diagnostics.__file__) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OF_THE_BATCH = os.path.join(_OWN, "contracts", "data.py")
_FIRST_STEPS = 8  # contracts look at more in them


@dataclass(frozen=True)
class HostReads:
    """Values read on the host in one step, by part of the step; `own` are those that `diagnostics` asked for.

    On the CPU AdamW reads its step counters, which lie on the CPU on every machine: no device waits for them.
    """

    bare: dict[str, int]
    watched: dict[str, int]
    own: dict[str, int]
    own_sources: dict[str, int] = field(default_factory=dict)

    @property
    def num_own_before_optimizer(self) -> int:
        return sum(self.own.get(part, 0) for part in ("before", "forward", "backward", "clip", "loss read"))


class _ReadCounter(TorchDispatchMode):
    """Counts values that the host reads, by part of the step, and who asked for them.

    `tolist` and `numpy` of a CPU tensor dispatch nothing, so the methods themselves are counted.
    """

    _METHODS = ("tolist", "numpy", "__array__")

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self._trial = trial
        self.counts: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        self.own_sources: Counter[str] = Counter()

    def __enter__(self) -> "_ReadCounter":
        self._originals = {name: getattr(Tensor, name) for name in self._METHODS}
        for name, original in self._originals.items():
            setattr(Tensor, name, self._counting(original))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        for name, original in self._originals.items():
            setattr(Tensor, name, original)
        super().__exit__(*exception)

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._count(f"{original.__name__}")
            return original(tensor, *args, **kwargs)

        return method

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self._count("item")
        elif name in ("_to_copy", "copy_"):
            source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
            if source.device.type != "cpu" and target is not None and torch.device(target).type == "cpu":
                self._count("copy to the host")
        elif name in ("nonzero", "masked_select", "equal", "is_nonzero"):  # shapes and answers that the host waits for
            self._count(name)
        return func(*args, **kwargs)

    def _count(self, kind: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_TORCH):
            frame = frame.f_back
        # It looks into a batch between due steps only where that lies in the host's memory: no device waits.
        is_free = frame.f_code.co_filename == _OF_THE_BATCH and self._trial.device.type == "cpu"
        if is_free:
            return
        self.counts[self._trial.part] += 1
        if frame.f_code.co_filename.startswith(_OWN):
            self.own[self._trial.part] += 1
            self.own_sources[f"{os.path.basename(frame.f_code.co_filename)} {frame.f_code.co_name}: {kind}"] += 1


def count_host_reads(trial: Trial, watched_step: Callable[[], Any]) -> HostReads:
    """Of a bare step and a watched one, after the first ones."""
    counters = []
    for step in (trial.step, watched_step):
        for _ in range(_FIRST_STEPS):
            step()
        trial.part = "before"
        with _ReadCounter(trial) as counter:
            step()
        counters.append(counter)
    bare, watched = counters
    return HostReads(dict(bare.counts), dict(watched.counts), dict(watched.own), dict(watched.own_sources))
