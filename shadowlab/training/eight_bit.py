"""AdamW with states of 8 bits (bitsandbytes; Dettmers et al., arXiv 2110.02861), and how its states are read.

A moment is one byte an element, an index into a map of 256 values in [-1, 1] or [0, 1] that all tensors share, times
the largest magnitude of each block of 256 elements, float32. Tensors of fewer than 4,096 elements keep float32. Weights
and gradients are what they were: float32 here, whatever the precision computes in.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from shadowlab.extras import extra_is_absent
from shadowlab.settings import OptimizerConfig

BLOCK = 256
SMALLEST = 4096
"""Elements of the smallest tensor whose moments take 8 bits."""
_LOGGER = "bitsandbytes.backends.cpu.ops"
_ABSENT = object()


def adamw8bit(parameters: Sequence[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW8bit over contiguous float32 parameters of any shape, on a CPU or a GPU.

    Raises:
        MissingDependencyError: bitsandbytes is absent or cannot be imported.
    """
    made: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(
        list(parameters),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        min_8bit_size=SMALLEST,
    )
    return made


def moments_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """`exp_avg` and `exp_avg_sq` of a parameter's state, of AdamW's or of this one's, float32 and of its shape; empty
    before the first step. 8-bit ones are new tensors, others the state's own."""
    if "state1" not in state:
        return {kind: state[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in state}
    return {"exp_avg": _wide(state, 1), "exp_avg_sq": _wide(state, 2)}


def _wide(state: Mapping[str, Any], number: int) -> Tensor:
    kept: Tensor = state[f"state{number}"]
    if kept.dtype != torch.uint8:
        return kept
    values = state[f"qmap{number}"][kept.flatten().long()]
    return (values * state[f"absmax{number}"].repeat_interleave(BLOCK)[: kept.numel()]).view(kept.shape)


def _bitsandbytes() -> ModuleType:
    try:
        with _quiet_import():
            import bitsandbytes
    except ImportError as error:
        problem = " ".join(str(error).split())
        raise extra_is_absent("optimizer.name=adamw8bit", "bitsandbytes", "low-memory", problem) from error
    module: ModuleType = bitsandbytes
    return module


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Inside, bitsandbytes neither fetches kernels for 4-bit products from the hub (it does where the package `kernels`
    is installed, and runs them) nor warns that it has none: nothing here multiplies in 4 bits."""
    logger = logging.getLogger(_LOGGER)
    level, kernels = logger.level, sys.modules.get("kernels", _ABSENT)
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        logger.setLevel(level)
        if kernels is _ABSENT:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels  # type: ignore[assignment]
