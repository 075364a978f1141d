"""The evidence of one incident: a folder that says what happened and lets the operator be run again."""

import json
import os
import pickletools
import platform
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from diagnostics.files import open_file, reason_of, replace_text
from diagnostics.incidents.excerpt import SourceExcerpt
from diagnostics.incidents.repro import write_repro
from diagnostics.records import encode
from diagnostics.tracing import OperatorCall, plain
from diagnostics.verdict import Verdict

_BATCH_LIMIT = 512 * 2**20  # bytes
_FILE_LIMIT = 2 * _BATCH_LIMIT  # a batch, or an operator's operands, with room for what surrounds them
_STRUCTURE_LIMIT = 64 * 2**20  # bytes of what says how the tensors are nested


def write_incident(
    folder: Path,
    verdict: Verdict,
    *,
    culprit: OperatorCall | None,
    batch: Any,
    randomness: Mapping[str, Tensor],
    layers: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write `folder/step-XXXXXXXX/` (the 1-based step) and return it; a step's second folder has a number at its end.

    verdict.json, verdict.txt, source.json (the lines around the verdict's, where they can be read), batch.pt (tensors
    and strings, capped), randomness.pt (generator states before the step), operator.pt and repro.py (where the
    operator's inputs are known), layers.json (statistics of every layer, as in `layers` of a record of a training
    step), environment.json. The `.pt` files load with `weights_only=True`.

    Args:
        culprit: the call of the operator that gave the value, with tensors of any shape; None where it is not known.
        batch: what the step was given, tensors of any shape in nested containers; None where the caller named nothing.
        randomness: name -> state of a generator, (N,) uint8.
        layers: layer -> `activation` or `gradient` -> statistics; empty where none was measured.

    Raises:
        OSError: the disk refuses a file.
    """
    place = _fresh(folder / f"step-{(verdict.step or 0) + 1:08d}")
    replace_text(place / "verdict.json", json.dumps(verdict.to_json(), indent=2, allow_nan=False) + "\n")
    replace_text(place / "verdict.txt", f"{verdict}\n")
    replace_text(place / "environment.json", json.dumps(environment(), indent=2) + "\n")
    if layers:
        replace_text(place / "layers.json", json.dumps(encode(dict(layers)), allow_nan=False) + "\n")
    excerpt = SourceExcerpt.read(verdict.source)
    if excerpt is not None:
        replace_text(place / "source.json", json.dumps(excerpt.to_json(), indent=2) + "\n")
    torch.save(dict(randomness), place / "randomness.pt")
    if batch is not None:
        torch.save(_capped(batch), place / "batch.pt")
    if culprit is not None:
        write_repro(place, verdict.headline(), culprit)
    return place


def load_evidence(file: Path, device: torch.device | str = "cpu") -> Any:
    """What a `.pt` file of an incident holds: tensors, numbers and strings, nested. No code in the file is run.

    Raises:
        ValueError: the file is missing, damaged, beyond a GiB, or holds something else.
    """
    try:
        with open_file(file, inside=file.parent) as opened:
            _require_bounded(opened)
            opened.seek(0)
            return torch.load(opened, map_location=device, weights_only=True)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({reason_of(error)})") from error
    except Exception as error:  # a damaged pickle raises anything, TypeError and MemoryError among it
        said = f": {error}" if isinstance(error, _BeyondBoundsError) else ""
        raise ValueError(f"{file}: cannot be read ({type(error).__name__}{said})") from error


class _BeyondBoundsError(ValueError):
    pass


def _require_bounded(file: BinaryIO) -> None:
    """Raise where reading a file of torch's would take more memory than the file is long, or too much.

    The parts that torch writes are not packed; one that unpacks to a thousand times its length is no evidence.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise _BeyondBoundsError("a packed part")
        if sum(part.file_size for part in parts) > _FILE_LIMIT:
            raise _BeyondBoundsError(f"beyond {_FILE_LIMIT / 2**30:g} GiB")
        for part in parts:
            if part.filename.endswith(".pkl"):
                if part.file_size > _STRUCTURE_LIMIT:
                    raise _BeyondBoundsError(f"{part.filename} is beyond {_STRUCTURE_LIMIT / 2**20:g} MiB")
                for operation, argument, _ in pickletools.genops(archive.read(part)):
                    if "GLOBAL" in operation.name and str(argument).endswith("bytearray"):
                        raise _BeyondBoundsError("a bytearray, which a number alone makes as large as it says")


def environment() -> dict[str, Any]:
    """Versions and settings that change numerics."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": devices,
        "machine": platform.machine(),
        "num_threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "command": sys.argv,
    }


def _fresh(wanted: Path) -> Path:
    for number in range(1, 1000):
        place = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            os.makedirs(place)
            return place
        except FileExistsError:
            continue
    raise FileExistsError(f"{wanted}: a thousand incidents of one step; remove some")


def _capped(batch: Any) -> Any:
    """The batch on the CPU; a tensor beyond the limit is replaced by a text with its shape and dtype."""
    left = _BATCH_LIMIT

    def keep(value: Any) -> Any:
        nonlocal left
        if isinstance(value, Tensor):
            left -= value.numel() * value.dtype.itemsize
            too_large = f"not kept: {tuple(value.shape)} {value.dtype}, beyond {_BATCH_LIMIT // 2**20} MiB in all"
            return value.detach().cpu() if left >= 0 else too_large
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, dict):
            return {key: keep(item) for key, item in value.items()}
        return [keep(item) for item in value] if isinstance(value, list) else repr(value)

    return keep(plain(batch))
