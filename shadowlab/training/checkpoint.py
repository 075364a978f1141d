"""Checkpoints: safetensors and JSON alone. What they look like stands in shadowlab/training/checkpoint_files.py.

Tensors are whole whatever the processes shared, so any number of processes can go on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shadowlab.distributed import assign
from shadowlab.errors import StageFailedError, UserError
from shadowlab.training.checkpoint_files import WEIGHTS_NAME, drop_old, write_checkpoint
from shadowlab.training.optimizer_state import SavedOptimizer, prepare_optimizer, restore_optimizer
from shadowlab.training.saved_file import damaged, read_object, read_tensors, shown
from shadowlab.training.saved_numbers import check_keys, checked_numbers, require_identity
from shadowlab.training.state import first_bad, training_state
from shadowlab.training.trainee import Trainee

_SAVING_SECONDS = 3600.0  # the other processes wait for the disk this long
_SILENT_SECONDS = 600.0  # a file of many GiB is written without giving other threads a turn
_TOLD = ("_class_name", "_diffusers_version", "_name_or_path")  # of a model's configuration, without meaning


def save_checkpoint(
    folder: Path,
    trainee: Trainee,
    *,
    step: int,
    position: int,
    identity: dict[str, Any],
    keep_last: int | None = None,
    keep_every: int | None = None,
) -> Path:
    """Write `folder/step-XXXXXXXX` and drop older ones. Every process calls; the first writes.

    Args:
        step: optimizer steps done. position: samples drawn by all processes. identity: JSON values that must be the
            same when the run is resumed (data, effective batch).
        keep_last: newest ones that stay; None: all, until `drop_old` is called. keep_every: steps whose multiples stay
            for good.

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
            if keep_last is not None:
                drop_old(folder, step, keep_last, keep_every)
    processes.at("checkpoint written")
    return folder / f"step-{step:08d}"


def load_checkpoint(
    path: Path, trainee: Trainee, *, identity: Mapping[str, Any] | None = None, converts: bool = False
) -> dict[str, Any]:
    """Restore weights, EMA, optimizer and scaler in place; every process reads. Returns state.json's content.

    Nothing but safetensors and JSON is read, so nothing in a file is ever run. After an error the trainee may no longer
    be what it was.

    Args:
        identity: what must be as it was when the checkpoint was written; None: anything goes.
        converts: floating tensors take the dtypes of the trainee, which may be of another precision than the run was.
            Otherwise they must be the same.

    Raises:
        UserError: something in a file is missing, unknown, of the wrong kind or not finite, or does not fit the model
            or the optimizer; names file and key.
    """
    named = dict(trainee.unet.named_parameters())
    averages = {} if trainee.ema is None else dict(zip(trainee.parameters(), trainee.ema.shadow_params, strict=True))
    state = checked_numbers(read_object(path / "state.json"), path / "state.json", trainee, converts=converts)
    if identity is not None:
        require_identity(state, identity, path)
    optimizer, saved = trainee.optimizer, SavedOptimizer.load(path)
    weights = _fitting(named, path / "unet", trainee, converts)
    ema = None if trainee.ema is None else _fitting({**named, **averages}, path / "ema", trainee, converts)
    try:
        prepare_optimizer(optimizer, named, saved, num_updates=state["step"] - state["skips"]["total"])
        _restore(named, named, weights)
        if trainee.ema is not None and ema is not None:
            _restore(averages, named, ema)
            trainee.ema.optimization_step = state["ema_updates"]
        restore_optimizer(optimizer, named, saved, converts=converts)
    except (ValueError, KeyError) as error:
        raise damaged(saved.file, " ".join(str(error).split())) from error
    if trainee.scaler is not None and state["scaler"]:
        trainee.scaler.load_state_dict(state["scaler"])
    skips = state["skips"]
    trainee.watch.skips_in_a_row, trainee.watch.num_skipped = skips["in_a_row"], skips["total"]
    return state


def _fitting(wanted: Mapping[str, Tensor], where: Path, trainee: Trainee, converts: bool) -> dict[str, Tensor]:
    """Every tensor of the model in the folder `where`, whose configuration must be the model's.

    Args:
        wanted: what the model has of every parameter, of any shape where it is sharded.

    Raises:
        UserError: it does not fit.
    """
    _check_config(read_object(where / "config.json"), where / "config.json", trainee)
    file = where / WEIGHTS_NAME
    saved, shapes = read_tensors(file), {name: p.shape for name, p in trainee.unet.named_parameters()}
    if set(wanted) != set(saved):
        name = sorted(set(wanted) ^ set(saved))[0]
        raise UserError(f"{file}: tensor {shown(name)} is not in both model and file; the configuration has changed")
    for name, tensor in wanted.items():
        one, shape = saved[name], shapes[name]
        if shape != one.shape:
            raise UserError(f"{file}: {name} is {tuple(one.shape)}, the model has {tuple(shape)}; take the change back")
        is_convertible = converts and tensor.is_floating_point() and one.is_floating_point()
        if tensor.dtype != one.dtype and not is_convertible:
            raise UserError(
                f"{file}: {name} is {one.dtype}, the model has {tensor.dtype}; take the precision that the run had"
            )
    return saved


def _check_config(saved: dict[str, Any], file: Path, trainee: Trainee) -> None:
    """Raise UserError where config.json is that of another model. Of another diffusers, it may have other keys."""
    mine = json.loads(trainee.unet.to_json_string())
    version = mine.get("_diffusers_version")
    if saved.get("_diffusers_version", version) == version:
        named = {"_name_or_path": ""}  # a model that was loaded has the name of its folder, one that was made has none
        check_keys(named | saved, named | mine, file)
    for key in (key for key in saved if key in mine):
        is_same = saved[key] == mine[key] and type(saved[key]) is type(mine[key])
        if not is_same and not (key in _TOLD and isinstance(saved[key], str)):
            raise UserError(
                f"{file}: {key} is {shown(saved[key])}, the model has {shown(mine[key])}; take the change back"
            )


def _restore(wanted: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Give `wanted`, or this process's parts of them, what was saved."""
    for name, tensor in wanted.items():
        assign(tensor, saved[name], like=parameters[name])
