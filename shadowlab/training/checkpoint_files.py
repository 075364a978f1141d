"""A checkpoint's folder: written aside, synced, renamed, and marked complete last.

checkpoints/step-00001000/
    unet/            diffusers' layout; `UNet2DConditionModel.from_pretrained(path)` loads it
    ema/             the same with the averaged weights, where there is an EMA
    optimizer.safetensors, optimizer.json   shadowlab/training/optimizer_state.py
    state.json       counters, gradient scaler, what the run is
    COMPLETE         size and SHA-256 of every file; a folder without it is never read
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.training.optimizer_state import DOCUMENT, TENSORS
from shadowlab.training.state import TrainingState

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_MARKER = "COMPLETE"
_PARTIAL = ".partial"


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
        save_file(_dense(state.optimizer), temporary / TENSORS)
        if state.optimizer_document is not None:
            content = json.dumps(state.optimizer_document, indent=1, allow_nan=False) + "\n"
            (temporary / DOCUMENT).write_text(content, encoding="utf-8")
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
    """The newest checkpoint whose every byte is as it was written; `on_damaged` is called
    with the reason why a newer one is not taken."""
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


def drop_old(folder: Path, written: int, keep_last: int, keep_every: int | None) -> None:
    """Of the checkpoints up to the one just written: a later one was damaged, or a resume had not passed it over."""
    steps = {int(path.name.removeprefix("step-")): path for path in complete_checkpoints(folder)}
    for step in sorted(step for step in steps if step <= written)[:-keep_last]:
        if keep_every is None or step % keep_every != 0:
            with suppress(OSError):  # a run does not end for this; what stays has no marker, and a resume clears it
                _remove(steps[step])


def _save_model(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
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


def _remove(checkpoint: Path) -> None:
    (checkpoint / _MARKER).unlink(missing_ok=True)  # first: half removed it must not pass for complete
    shutil.rmtree(checkpoint)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
