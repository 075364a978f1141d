"""Checkpoints: safetensors and JSON, written aside, synced, renamed, and marked complete last.

checkpoints/step-00001000/
    unet/            diffusers' layout; `UNet2DConditionModel.from_pretrained(path)` loads it
    ema/             the same with the averaged weights, where there is an EMA
    optimizer.safetensors   `PARAMETER/exp_avg`, `/exp_avg_sq`, `/step`
    state.json       counters, gradient scaler, what the run is
    COMPLETE         size and SHA-256 of every file; a folder without it is never read

Tensors are whole whatever the processes shared, so any number of processes can go on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diagnostics import all_finite
from shadowlab.distributed import assign, is_sharded, local, whole
from shadowlab.errors import StageFailedError, UserError
from shadowlab.training.trainee import Trainee

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_MARKER = "COMPLETE"
_PARTIAL = ".partial"
_SAVING_SECONDS = 3600.0  # the other processes wait for the disk this long
_SILENT_SECONDS = 600.0  # a file of many GiB is written without giving other threads a turn


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds. weights, averages (None without an EMA), optimizer: name -> whole tensor, float32 or as
    trained, on any device. unet_config: config.json of diffusers. numbers: state.json."""

    weights: dict[str, Tensor]
    averages: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    unet_config: dict[str, Any]
    numbers: dict[str, Any]

    def num_bytes(self) -> int:
        tensors = [*self.weights.values(), *(self.averages or {}).values(), *self.optimizer.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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
            _drop_old(folder, step, keep_last, keep_every)
    processes.at("checkpoint written")
    return folder / f"step-{step:08d}"


def first_bad(trainee: Trainee) -> str | None:
    """What of this process's state is not finite, in words; None where all is."""
    for kind, tensors in state_by_kind(trainee).items():
        parts = {name: local(tensor) for name, tensor in tensors.items()}
        if not bool(all_finite(parts.values())):
            return f"{kind} {next(name for name, part in parts.items() if not torch.isfinite(part).all())}"
    return None


def state_by_kind(trainee: Trainee) -> dict[str, dict[str, Tensor]]:
    """Kind -> name -> tensor as this process holds it."""
    tensors: dict[str, dict[str, Tensor]] = {"parameter": dict(trainee.unet.named_parameters())}
    if trainee.ema is not None:
        tensors["EMA of"] = dict(zip(trainee.parameters(), trainee.ema.shadow_params, strict=True))
    tensors["optimizer state"] = {
        f"{name}/{key}": value.detach()
        for name, parameter in trainee.parameters().items()
        for key, value in trainee.optimizer.state.get(parameter, {}).items()
    }
    return tensors


def training_state(trainee: Trainee, *, step: int, position: int, identity: dict[str, Any]) -> TrainingState:
    """The state as it is written; where it is sharded a collective, and whole on the first process alone."""
    named = state_by_kind(trainee)
    numbers = {
        "step": step,
        "position": position,
        "seed": trainee.seed,
        "identity": identity,
        "processes": trainee.processes.count,
        "strategy": trainee.processes.strategy,
        "ema_updates": trainee.ema.optimization_step if trainee.ema else None,
        "scaler": trainee.scaler.state_dict() if trainee.scaler else None,
        "skips": {"in_a_row": trainee.watch.skips_in_a_row, "total": trainee.watch.num_skipped},
    }
    averages = named.get("EMA of")
    return TrainingState(
        weights=_gathered(trainee, named["parameter"]),
        averages=None if averages is None else _gathered(trainee, averages),
        optimizer=_gathered(trainee, named["optimizer state"]),
        # Sharding gives the class another name.
        unet_config=json.loads(trainee.unet.to_json_string()) | {"_class_name": "UNet2DConditionModel"},
        numbers=numbers,
    )


def write_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Write `folder/step-XXXXXXXX`; one process does.

    Raises:
        UserError: the disk refuses; nothing of it stays, earlier checkpoints do.
    """
    target = folder / f"step-{state.numbers['step']:08d}"
    temporary = folder / f".{target.name}{_PARTIAL}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_space(folder, state.num_bytes())
        shutil.rmtree(temporary, ignore_errors=True)
        _save_model(temporary / "unet", state.weights, state.unet_config)
        if state.averages is not None:
            _save_model(temporary / "ema", state.averages, state.unet_config)
        save_file(_dense(state.optimizer), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(state.numbers, indent=2) + "\n", encoding="utf-8")
        marker = json.dumps(_described(temporary), indent=2) + "\n"
        for path in [*sorted(temporary.rglob("*")), temporary]:
            _sync(path)
        if target.exists():
            _remove(target)
        temporary.rename(target)
        (target / f"{_MARKER}.tmp").write_text(marker, encoding="utf-8")
        _sync(target / f"{_MARKER}.tmp")
        (target / f"{_MARKER}.tmp").rename(target / _MARKER)
        _sync(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{target}: checkpoint not written ({error}); earlier checkpoints stay, free the disk or make it writable"
        ) from error
    return target


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints whose files have the sizes that were written, oldest first. Contents are not read."""
    return [path for path in sorted(folder.glob("step-*")) if _is_complete(path)]


def newest_sound_checkpoint(folder: Path, on_damaged: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; `on_damaged` hears why newer ones are not taken."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = _problem(path)
        if problem is None:
            return path
        on_damaged(f"{path}: {problem}; it is left alone, the one before is used")
    return None


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove what a killed process left half written, or half removed; returns it. No other process may write there."""
    unfinished = [*folder.glob(f".step-*{_PARTIAL}")]
    unfinished += [path for path in folder.glob("step-*") if path.is_dir() and not (path / _MARKER).exists()]
    for path in unfinished:
        shutil.rmtree(path, ignore_errors=True)
    return unfinished


def load_checkpoint(path: Path, trainee: Trainee) -> dict[str, Any]:
    """Restore weights, EMA, optimizer and scaler in place; every process reads. Returns state.json's content.

    Nothing but safetensors and JSON is read, so nothing in a file is ever run.

    Raises:
        UserError: a file is damaged or does not fit the model.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        named = dict(trainee.unet.named_parameters())
        _restore(named, named, load_file(path / "unet" / WEIGHTS_NAME), path / "unet")
        if trainee.ema is not None:
            if not (path / "ema").is_dir():
                raise UserError(f"{path}: has no EMA; set train.ema_decay=null as the run had, or start anew")
            parameters = trainee.parameters()
            averaged = dict(zip(parameters, trainee.ema.shadow_params, strict=True))
            _restore(averaged, parameters, load_file(path / "ema" / WEIGHTS_NAME), path / "ema")
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


def _gathered(trainee: Trainee, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the first process, one after the other to its CPU where they are sharded; else as they are."""
    if not is_sharded(trainee.unet):
        return {name: tensor.detach() for name, tensor in tensors.items()}
    parameters = dict(trainee.unet.named_parameters())
    found = {}
    for name, tensor in tensors.items():
        like = parameters[name.rpartition("/")[0] or name]
        one = whole(tensor.detach(), like=like)
        if trainee.processes.is_main:
            found[name] = one.cpu()
    return found


def _dense(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _save_model(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(_dense(tensors), folder / WEIGHTS_NAME, {"format": "pt"})


def _require_space(folder: Path, num_bytes: int) -> None:
    """Raise OSError before hours of training are half written."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(f"it takes {num_bytes / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free")


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative name -> size and SHA-256 of every file; large files are read side by side."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _MARKER]
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(_sha256, files)
        return {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(files, digests, strict=True)
        }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _marked(path: Path) -> dict[str, dict[str, Any]] | None:
    """What the marker of a checkpoint says; None where it is absent or no marker."""
    try:
        content = json.loads((path / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # ValueError: neither JSON nor UTF-8
        return None
    described = isinstance(content, dict) and all(
        isinstance(one, dict) and {"bytes", "sha256"} <= one.keys() for one in content.values()
    )
    return content if described and "state.json" in content else None


def _is_complete(path: Path) -> bool:
    files = _marked(path)
    if files is None:
        return False
    return all((path / n).is_file() and (path / n).stat().st_size == one["bytes"] for n, one in files.items())


def _problem(path: Path) -> str | None:
    files = _marked(path)
    if files is None:
        return f"incomplete (no readable {_MARKER})"
    for name, one in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != one["bytes"]:
            return f"{name} has {file.stat().st_size:,} bytes instead of {one['bytes']:,}"
    try:
        found = _described(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    changed = [name for name, one in files.items() if found.get(name, {}).get("sha256") != one["sha256"]]
    return f"{changed[0]} is not what was written (SHA-256 differs)" if changed else None


def _drop_old(folder: Path, written: int, keep_last: int, keep_every: int | None) -> None:
    """Of the checkpoints up to the one just written: a later one was damaged, or a resume had not passed it over."""
    steps = {int(path.name.removeprefix("step-")): path for path in complete_checkpoints(folder)}
    for step in sorted(step for step in steps if step <= written)[:-keep_last]:
        if keep_every is None or step % keep_every != 0:
            with suppress(OSError):  # a run does not end for this; what stays has no marker, and a resume clears it
                _remove(steps[step])


def _remove(checkpoint: Path) -> None:
    (checkpoint / _MARKER).unlink(missing_ok=True)  # first: half removed it must not pass for complete
    shutil.rmtree(checkpoint)


def _restore(wanted: dict[str, Any], parameters: dict[str, Any], saved: dict[str, Tensor], where: Path) -> None:
    """Give the tensors `wanted`, which belong to the `parameters` of the same names, what was saved."""
    if set(wanted) != set(saved):
        name = sorted(set(wanted) ^ set(saved))[0]
        raise UserError(f"{where}: tensor {name} is not in both model and file; the configuration has changed")
    for name, tensor in wanted.items():
        shape = parameters[name].shape
        if shape != saved[name].shape:
            raise UserError(f"{where}: {name} is {tuple(saved[name].shape)}, the model has {tuple(shape)}")
        assign(tensor, saved[name], like=parameters[name])


def _restore_optimizer(trainee: Trainee, saved: dict[str, Tensor], where: Path) -> None:
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        name, _, part = key.rpartition("/")
        grouped.setdefault(name, {})[part] = tensor
    for name, parameter in trainee.parameters().items():
        if name in grouped:
            parts = grouped.pop(name)
            trainee.optimizer.state[parameter] = {
                key: _counter(trainee, tensor, parameter) if key == "step" else _moment(tensor, parameter)
                for key, tensor in parts.items()
            }
    if grouped:
        raise UserError(f"{where}: optimizer state of {sorted(grouped)[0]} fits no parameter; the model has changed")


def _counter(trainee: Trainee, saved: Tensor, parameter: Tensor) -> Tensor:
    """AdamW keeps its step counter on the CPU, a fused one beside the parameter."""
    return saved.to(parameter.device) if trainee.optimizer.defaults.get("fused") else saved


def _moment(saved: Tensor, parameter: Tensor) -> Tensor:
    moment = torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False)
    assign(moment, saved, like=parameter)
    return moment


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
