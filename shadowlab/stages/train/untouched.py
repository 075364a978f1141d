"""Proof that a validation leaves the training as it was: weights, buffers, averages, optimizer, gradients, random
numbers and modes, bit for bit. A sum over the bits of every tensor before and after: no copy is kept.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from shadowlab.distributed import local
from shadowlab.errors import StageFailedError
from shadowlab.training import Trainee, state_tensors

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@contextmanager
def untouched(trainee: Trainee, step: int) -> Iterator[None]:
    """Inside, the trainee may be used, and must be left as it was found. Every process calls.

    Raises:
        StageFailedError: on every process, where it was not; names what was changed first.
    """
    before = _digests(trainee)
    yield
    after = _digests(trainee)
    own = next((name for name in {**before, **after} if before.get(name) != after.get(name)), None)
    changed = next((name for name in trainee.processes.gather([own]) if name is not None), None)
    if changed is not None:
        failure = StageFailedError(
            f"validation at step {step} changed {changed}, which the training goes on with; it must only look: see "
            "shadowlab/stages/train/validation.py, validate, shadowlab/evaluation/fixed_grid.py, evaluate, and "
            "shadowlab/training/trainee.py, averaged_weights"
        )
        failure.shared = True
        raise failure


def _digests(trainee: Trainee) -> dict[str, object]:
    """Name -> something that compares, of everything that the next step depends on."""
    tensors = dict(state_tensors(trainee))
    tensors |= {f"buffer {name}": local(buffer) for name, buffer in trainee.unet.named_buffers()}
    found: dict[str, object] = {}
    for name, parameter in trainee.unet.named_parameters():
        if parameter.grad is not None:
            tensors[f"gradient of {name}"] = local(parameter.grad)
        found[f"requires_grad of {name}"] = parameter.requires_grad
    found |= _sums(tensors)
    found |= {
        f"training mode of {name or 'the UNet'}": module.training for name, module in trainee.unet.named_modules()
    }
    found["torch's random numbers"] = torch.get_rng_state().numpy().tobytes()
    found["NumPy's random numbers"] = str(np.random.get_state(legacy=False))
    found["Python's random numbers"] = random.getstate()
    if trainee.device.type == "cuda":
        found["CUDA's random numbers"] = torch.cuda.get_rng_state(trainee.device).numpy().tobytes()
    return found


@torch.no_grad()
def _sums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Of each tensor the sum of its bits read as integers; one transfer to the host for each device."""
    sums = {name: _bits(tensor).sum(dtype=torch.int64) for name, tensor in tensors.items()}
    found: dict[str, int] = {}
    for device in dict.fromkeys(one.device for one in sums.values()):
        here = [name for name, one in sums.items() if one.device == device]
        found |= dict(zip(here, torch.stack([sums[name] for name in here]).tolist(), strict=True))
    return found


def _bits(tensor: Tensor) -> Tensor:
    dense = tensor.detach()
    if not dense.is_floating_point():
        return dense
    flat = dense.contiguous() if dense.dim() == 0 or not dense.is_contiguous() else dense
    return flat.view(_INTEGERS[dense.element_size()])
