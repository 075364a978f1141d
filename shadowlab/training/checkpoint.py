"""Checkpoints: safetensors and JSON alone. What they look like stands in shadowlab/training/checkpoint_files.py.

Tensors are whole whatever the processes shared, so any number of processes can go on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shadowlab.distributed import assign
from shadowlab.errors import StageFailedError, UserError
from shadowlab.training.checkpoint_files import WEIGHTS_NAME, drop_old, write_checkpoint
from shadowlab.training.optimizer_state import SavedOptimizer, prepare_optimizer, restore_optimizer
from shadowlab.training.state import first_bad, training_state
from shadowlab.training.trainee import Trainee

_SAVING_SECONDS = 3600.0  # the other processes wait for the disk this long
_SILENT_SECONDS = 600.0  # a file of many GiB is written without giving other threads a turn


def save_checkpoint(
    folder: Path,
    trainee: Trainee,
    *,
    step: int,
    position: int,
    identity: dict[str, Any],
    keep_last: int,
    keep_every: int | None = None,
) -> Path:
    """Write `folder/step-XXXXXXXX` and drop older ones. Every process calls; the first writes.

    Args:
        step: optimizer steps done. position: samples drawn by all processes. identity: JSON values that must be the
            same when the run is resumed (data, effective batch).
        keep_last: newest ones that stay. keep_every: steps whose multiples stay for good.

    Raises:
        StageFailedError: a parameter, EMA weight or optimizer state is not finite; nothing is written.
        UserError: the disk refuses; earlier checkpoints stay.
    """
    processes = trainee.processes
    writes = _SILENT_SECONDS if processes.is_main else 0.0
    processes.at("checkpoint", patience_seconds=_SAVING_SECONDS, silence_seconds=writes)
    bad = next((name for name in processes.gather([first_bad(trainee)]) if name is not None), None)
    if bad is not None:
        failure = StageFailedError(
            f"step {step}: {bad} is not finite, so no checkpoint was written; the last complete one is untouched"
        )
        failure.shared = True
        raise failure
    state = training_state(trainee, step=step, position=position, identity=identity)
    with processes.together():
        if processes.is_main:
            write_checkpoint(folder, state)
            drop_old(folder, step, keep_last, keep_every)
    processes.at("checkpoint written")
    return folder / f"step-{step:08d}"


def load_checkpoint(path: Path, trainee: Trainee, *, converts: bool = False) -> dict[str, Any]:
    """Restore weights, EMA, optimizer and scaler in place; every process reads. Returns state.json's content.

    Nothing but safetensors and JSON is read, so nothing in a file is ever run. After an error the trainee is no longer
    what it was.

    Args:
        converts: floating tensors take the dtypes of the trainee, which may be of another precision than the run was.
            Otherwise they must be the same.

    Raises:
        UserError: a file is damaged, or does not fit the model or the optimizer.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        named = dict(trainee.unet.named_parameters())
        weights = _fitting(named, named, path / "unet", converts)
        optimizer, saved = trainee.optimizer, SavedOptimizer.load(path)
        prepare_optimizer(optimizer, named, saved, num_updates=state["step"] - state["skips"]["total"])
        _restore(named, named, weights)
        if trainee.ema is not None:
            if not (path / "ema").is_dir():
                raise UserError(f"{path}: has no EMA; set train.ema_decay=null as the run had, or start anew")
            averages = dict(zip(trainee.parameters(), trainee.ema.shadow_params, strict=True))
            _restore(averages, named, _fitting(averages, named, path / "ema", converts))
            trainee.ema.optimization_step = state["ema_updates"]
        restore_optimizer(optimizer, named, saved, converts=converts)
        if trainee.scaler is not None and state["scaler"]:
            trainee.scaler.load_state_dict(state["scaler"])
        skips = state["skips"]
        trainee.watch.skips_in_a_row, trainee.watch.num_skipped = skips["in_a_row"], skips["total"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # ValueError: neither JSON nor UTF-8
        raise UserError(
            f"{path}: damaged checkpoint ({type(error).__name__}: {error}); remove it to use the one before"
        ) from error
    return state


def _fitting(
    wanted: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], where: Path, converts: bool
) -> dict[str, Tensor]:
    """Every tensor of the model in the folder `where`.

    Args:
        wanted: tensors that it is for, of some or all of the `parameters`, which it must have, all and no other.

    Raises:
        UserError: it does not fit.
    """
    saved = load_file(where / WEIGHTS_NAME)
    if set(parameters) != set(saved):
        name = sorted(set(parameters) ^ set(saved))[0]
        raise UserError(f"{where}: tensor {name} is not in both model and file; the configuration has changed")
    for name, tensor in wanted.items():
        one, shape = saved[name], parameters[name].shape
        if shape != one.shape:
            raise UserError(
                f"{where}: {name} is {tuple(one.shape)}, the model has {tuple(shape)}; take the change back"
            )
        if tensor.dtype != one.dtype and not converts:
            raise UserError(
                f"{where}: {name} is {one.dtype}, the model has {tensor.dtype}; take the precision that the run had"
            )
    return saved


def _restore(wanted: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Give `wanted`, or this process's parts of them, what was saved."""
    for name, tensor in wanted.items():
        assign(tensor, saved[name], like=parameters[name])
