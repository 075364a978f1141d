"""Checkpoints: safetensors and JSON, written aside, synced, renamed, and marked complete last.

checkpoints/step-00001000/
    unet/            diffusers' layout; `UNet2DConditionModel.from_pretrained(path)` loads it
    ema/             the same with the averaged weights, where there is an EMA
    optimizer.safetensors   `PARAMETER/exp_avg`, `/exp_avg_sq`, `/step`
    state.json       counters, gradient scaler, configuration hash
    COMPLETE         names and sizes of all files; a folder without it is never read
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diagnostics.nonfinite import all_finite
from shadowlab.errors import StageFailedError, UserError
from shadowlab.training.trainee import Trainee

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def save_checkpoint(
    folder: Path, trainee: Trainee, *, step: int, position: int, identity: dict[str, Any], keep_last: int
) -> Path:
    """Write `folder/step-XXXXXXXX` and drop all but the newest `keep_last`. The caller lets one process do it.

    Args:
        step: optimizer steps done. position: samples drawn by all processes. identity: JSON values that must be the
            same when the run is resumed (data, effective batch).

    Raises:
        StageFailedError: a parameter, EMA weight or optimizer state is not finite; nothing is written.
        UserError: the disk refuses; earlier checkpoints stay.
    """
    optimizer_state = _optimizer_tensors(trainee)
    for kind, tensors in _state_tensors(trainee, optimizer_state).items():
        if not bool(all_finite(tensors.values())):
            name = next(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
            raise StageFailedError(
                f"step {step}: {kind} {name} is not finite, so no checkpoint was written; "
                "the last complete one is untouched"
            )
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        trainee.unet.save_pretrained(temporary / "unet", max_shard_size="100GB")
        if trainee.ema is not None:
            _save_ema(temporary / "ema", trainee)
        save_file(optimizer_state, temporary / "optimizer.safetensors")
        state = {
            "step": step,
            "position": position,
            "seed": trainee.seed,
            "identity": identity,
            "ema_updates": trainee.ema.optimization_step if trainee.ema else None,
            "scaler": trainee.scaler.state_dict() if trainee.scaler else None,
            "skips": {"in_a_row": trainee.watch.skips_in_a_row, "total": trainee.watch.num_skipped},
        }
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        sizes = {str(p.relative_to(temporary)): p.stat().st_size for p in sorted(temporary.rglob("*")) if p.is_file()}
        for file in [*sizes, "unet", *(["ema"] if trainee.ema else []), "."]:
            _sync(temporary / file)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        (target / "COMPLETE").write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
        _sync(target / "COMPLETE")
        _sync(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{target}: checkpoint not written ({error}); earlier checkpoints stay, free the disk"
        ) from error
    for old in complete_checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    return target


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints whose files have the sizes that were written, oldest first."""
    return [path for path in sorted(folder.glob("step-*")) if _is_complete(path)]


def load_checkpoint(path: Path, trainee: Trainee) -> dict[str, Any]:
    """Restore weights, EMA, optimizer and scaler in place. Returns state.json's content.

    Raises:
        UserError: a file is damaged or does not fit the model.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        _restore(dict(trainee.unet.named_parameters()), load_file(path / "unet" / WEIGHTS_NAME), path / "unet")
        if trainee.ema is not None:
            if not (path / "ema").is_dir():
                raise UserError(f"{path}: has no EMA; set train.ema_decay=null as the run had, or start anew")
            names = list(trainee.parameters())
            averaged = dict(zip(names, trainee.ema.shadow_params, strict=True))
            _restore(averaged, load_file(path / "ema" / WEIGHTS_NAME), path / "ema")
            trainee.ema.optimization_step = state["ema_updates"]
        _restore_optimizer(trainee, load_file(path / "optimizer.safetensors"), path)
        if trainee.scaler is not None and state["scaler"]:
            trainee.scaler.load_state_dict(state["scaler"])
        skips = state["skips"]
        trainee.watch.skips_in_a_row, trainee.watch.num_skipped = skips["in_a_row"], skips["total"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # ValueError: neither JSON nor UTF-8
        raise UserError(
            f"{path}: damaged checkpoint ({type(error).__name__}: {error}); remove it to use the one before"
        ) from error
    return state


def _is_complete(path: Path) -> bool:
    marker = path / "COMPLETE"
    if not marker.is_file():
        return False
    try:
        sizes = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:  # neither JSON nor UTF-8
        return False
    if not isinstance(sizes, dict) or "state.json" not in sizes:
        return False
    return all((path / name).is_file() and (path / name).stat().st_size == size for name, size in sizes.items())


def _save_ema(folder: Path, trainee: Trainee) -> None:
    assert trainee.ema is not None
    folder.mkdir(parents=True)
    trainee.unet.save_config(folder)
    averaged = zip(trainee.parameters(), trainee.ema.shadow_params, strict=True)
    save_file({name: tensor.contiguous() for name, tensor in averaged}, folder / WEIGHTS_NAME, {"format": "pt"})


def _optimizer_tensors(trainee: Trainee) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in trainee.parameters().items():
        for key, value in trainee.optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value.detach().contiguous()
    return tensors


def _state_tensors(trainee: Trainee, optimizer_state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    tensors: dict[str, dict[str, Tensor]] = {"parameter": dict(trainee.unet.named_parameters())}
    if trainee.ema is not None:
        tensors["EMA of"] = dict(zip(trainee.parameters(), trainee.ema.shadow_params, strict=True))
    tensors["optimizer state"] = optimizer_state
    return tensors


@torch.no_grad()
def _restore(wanted: dict[str, Any], saved: dict[str, Tensor], where: Path) -> None:
    if set(wanted) != set(saved):
        name = sorted(set(wanted) ^ set(saved))[0]
        raise UserError(f"{where}: tensor {name} is not in both model and file; the configuration has changed")
    for name, tensor in wanted.items():
        if tensor.shape != saved[name].shape:
            raise UserError(f"{where}: {name} is {tuple(saved[name].shape)}, the model has {tuple(tensor.shape)}")
        tensor.copy_(saved[name])


def _restore_optimizer(trainee: Trainee, saved: dict[str, Tensor], where: Path) -> None:
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        name, _, part = key.rpartition("/")
        grouped.setdefault(name, {})[part] = tensor
    for name, parameter in trainee.parameters().items():
        if name in grouped:
            # AdamW keeps its step counter on the CPU, the moments beside the parameter.
            trainee.optimizer.state[parameter] = {
                key: tensor if key == "step" else tensor.to(parameter.device)
                for key, tensor in grouped.pop(name).items()
            }
    if grouped:
        raise UserError(f"{where}: optimizer state of {sorted(grouped)[0]} fits no parameter; the model has changed")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
