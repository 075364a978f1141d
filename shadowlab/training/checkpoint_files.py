"""A checkpoint's folder: written aside, synced, renamed, and marked complete last.

checkpoints/step-00001000/
    unet/            diffusers' layout; `UNet2DConditionModel.from_pretrained(path)` loads it
    ema/             the same with the averaged weights, where there is an EMA
    optimizer.safetensors, optimizer.json   shadowlab/training/optimizer_state.py
    state.json       counters, gradient scaler, what the run is
    COMPLETE         size and SHA-256 of every file; a folder without it is never read
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diagnostics.files import is_inside, read_json, reason_of, remove_tree, replace_text, sha256_of
from shadowlab.errors import UserError
from shadowlab.training.optimizer_state import DOCUMENT, TENSORS
from shadowlab.training.saved_file import read_object, shown
from shadowlab.training.state import TrainingState

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_CONFIG_NAME = "config.json"
_MARKER = "COMPLETE"
_PARTIAL = ".partial"
_MARKER_ASIDE = re.compile(rf"{_MARKER}\.tmp|\.{_MARKER}\.[0-9]+\.tmp")  # half written; earlier versions' the first
_NAME = re.compile(r"step-([0-9]{8,18})")
_STATE = "state.json"
_NEEDED = (f"unet/{_CONFIG_NAME}", f"unet/{WEIGHTS_NAME}", TENSORS, _STATE)
_EMA = (f"ema/{_CONFIG_NAME}", f"ema/{WEIGHTS_NAME}")
_KNOWN = (*_NEEDED, *_EMA, DOCUMENT)  # all that is ever written, and read


def step_of(path: Path) -> int | None:
    """Of `step-00001000`; None of any other name, such as that of a copy."""
    found = _NAME.fullmatch(path.name)
    return None if found is None else int(found[1])


def checkpoint_folders(folder: Path) -> list[Path]:
    """Complete or not, by ascending step. What else lies there is no checkpoint, and is left alone, as is a link that
    leads out of the folder around it: nothing is removed there."""
    steps = {path: step_of(path) for path in (folder.iterdir() if folder.is_dir() else ())}
    own = [
        (step, path)
        for path, step in steps.items()
        if step is not None and path.is_dir() and is_inside(path, folder.parent)
    ]
    return [path for _, path in sorted(own)]


def foreign_entries(folder: Path) -> list[str]:
    """Names of what lies there and is no checkpoint: copies, notes, files."""
    own = {path.name for path in (*checkpoint_folders(folder), *_partial_folders(folder))}
    return sorted(path.name for path in folder.iterdir() if path.name not in own)


def write_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Write `folder/step-XXXXXXXX`; one process does.

    Raises:
        UserError: the disk refuses; nothing of it stays, earlier checkpoints do.
    """
    target = folder / f"step-{state.numbers['step']:08d}"
    temporary = folder / f".{target.name}{_PARTIAL}"
    is_in_place = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_space(folder, state.num_bytes())
        remove_tree(temporary)
        _save_model(temporary / "unet", state.weights, state.unet_config)
        if state.averages is not None:
            _save_model(temporary / "ema", state.averages, state.unet_config)
        save_file(_dense(state.optimizer), temporary / TENSORS)
        if state.optimizer_document is not None:
            content = json.dumps(state.optimizer_document, indent=1, allow_nan=False) + "\n"
            replace_text(temporary / DOCUMENT, content)
        replace_text(temporary / _STATE, json.dumps(state.numbers, indent=2) + "\n")
        marker = json.dumps(_described(temporary), indent=2) + "\n"
        for path in [*sorted(temporary.rglob("*")), temporary]:
            _sync(path)
        if os.path.lexists(target):
            _remove(target)
        temporary.rename(target)
        is_in_place = True
        replace_text(target / _MARKER, marker, synced=True)
        _sync(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # the next checkpoint tries again
            remove_tree(temporary)
            if is_in_place and not (target / _MARKER).exists():
                remove_tree(target)
        raise UserError(
            f"{target}: checkpoint not written ({error}); earlier checkpoints stay, free the disk or make it writable"
        ) from error
    return target


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints whose files have the sizes that were written, oldest first. Contents are not read."""
    return [path for path in checkpoint_folders(folder) if _is_complete(path)]


def newest_sound_checkpoint(folder: Path, on_damaged: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; `on_damaged` is called
    with the reason why a newer one is not taken."""
    for path in reversed(checkpoint_folders(folder)):
        problem = _problem(path)
        if problem is None:
            return path
        on_damaged(f"{path}: {problem}; it is left alone, the one before is used")
    return None


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove what a killed process left half written, or half removed; returns it. No other process may write there.

    A folder that holds anything else than a checkpoint's files is somebody's own, whatever its name.
    """
    unfinished = _partial_folders(folder)
    unfinished += [path for path in checkpoint_folders(folder) if not (path / _MARKER).exists() and _is_ours(path)]
    for path in unfinished:
        shutil.rmtree(path, ignore_errors=True)
    return unfinished


def drop_old(folder: Path, written: int, keep_last: int, keep_every: int | None, best: int | None = None) -> None:
    """Of the checkpoints up to the one just written: a later one was damaged, or a resume had not passed it over.

    best: a step whose checkpoint stays.
    """
    steps = {step_of(path) or 0: path for path in complete_checkpoints(folder)}
    for step in sorted(step for step in steps if step <= written)[:-keep_last]:
        if step != best and (keep_every is None or step % keep_every != 0):
            with suppress(OSError):  # a run does not end for this; what stays has no marker, and a resume clears it
                _remove(steps[step])


def _partial_folders(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f".step-*{_PARTIAL}") if path.is_dir()]
    return [path for path in found if _NAME.fullmatch(path.name.removeprefix(".").removesuffix(_PARTIAL))]


def _is_ours(path: Path) -> bool:
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    return not path.is_symlink() and all(name in _KNOWN or _MARKER_ASIDE.fullmatch(name) for name in files)


def _save_model(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    replace_text(folder / _CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(_dense(tensors), folder / WEIGHTS_NAME, {"format": "pt"})


def _dense(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and no two in one piece of memory: safetensors refuses that."""
    dense, taken = {}, set()
    for name, tensor in tensors.items():
        one = tensor.contiguous()
        if one.numel() and one.untyped_storage().data_ptr() in taken:
            one = one.clone()
        taken.add(one.untyped_storage().data_ptr())
        dense[name] = one
    return dense


def _require_space(folder: Path, num_bytes: int) -> None:
    """Raise OSError before hours of training are half written."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(f"it takes {num_bytes / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free")


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative name -> size and SHA-256 of every file; large files are read side by side."""
    files = [path for path in sorted(folder / name for name in _KNOWN) if path.is_file()]
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(partial(sha256_of, inside=folder), files)
        return {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(files, digests, strict=True)
        }


def _marked(path: Path) -> dict[str, dict[str, Any]] | None:
    """What the marker of a checkpoint says; None where it is absent or no marker."""
    try:
        content = read_json(path / _MARKER, inside=path)
    except (OSError, ValueError):  # ValueError: neither JSON nor UTF-8, or nested thousandfold
        return None
    described = isinstance(content, dict) and all(
        isinstance(one, dict) and {"bytes", "sha256"} <= one.keys() for one in content.values()
    )
    return content if described and _STATE in content else None


def _is_complete(path: Path) -> bool:
    files = _marked(path)
    return files is not None and _listing_problem(path, files) is None


def _listing_problem(path: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """Whether the marker names all that would be read, nothing else, and sizes as they are."""
    strange = [name for name in files if name not in _KNOWN]
    if strange:
        return f"{_MARKER} lists {strange[0][:60]!r}, which is no file of a checkpoint"
    needed = (*_NEEDED, *(_EMA if any(name in files for name in _EMA) else ()))
    missing = [name for name in needed if name not in files]
    if missing:
        return f"{_MARKER} does not list {missing[0]}"
    for name, one in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if not is_inside(file, path):
            return f"{name} is a link that leads out of the checkpoint"
        if file.stat().st_size != one["bytes"]:
            return f"{name} has {file.stat().st_size:,} bytes instead of {_bytes(one['bytes'])}"
    unlisted = [name for name in _KNOWN if name not in files and (path / name).exists()]
    return f"{unlisted[0]} is there and {_MARKER} does not list it" if unlisted else None


def _bytes(size: Any) -> str:
    return f"{size:,}" if type(size) is int and abs(size) < 2**63 else "a number of bytes"


def _problem(path: Path) -> str | None:
    files = _marked(path)
    if files is None:
        return f"incomplete (no readable {_MARKER})"
    problem = _listing_problem(path, files)
    if problem is not None:
        return problem
    try:
        found = _described(path)
    except OSError as error:
        return f"cannot be read ({reason_of(error)})"
    changed = [name for name, one in files.items() if found.get(name, {}).get("sha256") != one["sha256"]]
    if changed:
        return f"{changed[0]} is not what was written (SHA-256 differs)"
    with suppress(UserError):  # what else is wrong is said where it is loaded
        step = read_object(path / _STATE).get("step")
        if type(step) is int and step != step_of(path):
            return f"{_STATE} is of step {shown(step)}: the folder was renamed or copied"
    return None


def _remove(checkpoint: Path) -> None:
    if not checkpoint.is_symlink():
        (checkpoint / _MARKER).unlink(missing_ok=True)  # first: half removed it must not pass for complete
    remove_tree(checkpoint)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
