"""The evidence of one incident, and a script that reproduces the operator with torch alone (contract C7)."""

import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from diagnostics.excerpt import SourceExcerpt
from diagnostics.reference import Before
from diagnostics.step_batch import plain
from diagnostics.verdict import Verdict

_BATCH_LIMIT = 512 * 2**20  # bytes

_REPRO = '''"""{headline}

Runs the operator alone, on the operands it had. Needs torch and operator.pt beside this file; nothing else.
Exit code 0: the operator gives a non-finite value again. 1: it does not.
"""

import sys
from pathlib import Path

import torch

call = torch.load(Path(__file__).with_name("operator.pt"), weights_only=True)
torch.set_num_threads(call["num_threads"])
operator = torch.ops
for name in "{operator}".split("."):
    operator = getattr(operator, name)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def bad(value):
    inexact = [t for t in tensors(value) if t.is_floating_point() or t.is_complex()]
    return [t for t in inexact if not torch.isfinite(t).all()]


for t in tensors([call["args"], call["kwargs"]]):
    about = f"  {{str(t.dtype):<15}} {{tuple(t.shape)}}"
    if t.numel() and t.is_floating_point():
        about += f"  min {{t.min().item():.6g}}  max {{t.max().item():.6g}}"
        about += f"  smallest magnitude {{t.abs().min().item():.6g}}"
    print(about)
result = operator(*call["args"], **call["kwargs"])
# An operator that works in place has written to its arguments.
found = bad(result) or bad([call["args"], call["kwargs"]])
for t in found:
    wrong = t[~torch.isfinite(t)]
    print(f"{operator}: {{len(wrong)}} of {{t.numel()}} values are not finite, the first is {{wrong[0].item()}}")
if not found:
    print("{operator}: every value is finite here")
sys.exit(0 if found else 1)
'''


def write_incident(
    folder: Path,
    verdict: Verdict,
    *,
    culprit: Before | None,
    batch: Any,
    randomness: Mapping[str, Tensor],
) -> Path:
    """Write `folder/step-XXXXXXXX/` and return it. An existing folder of that step gets a number behind it.

    verdict.json, verdict.txt, source.json (the lines around the verdict's, where they can be read), batch.pt (tensors
    and strings, capped), randomness.pt (generator states before the step), operator.pt and repro.py (where the
    operator's inputs are known), environment.json. The `.pt` files load with `weights_only=True`.
    """
    place = _fresh(folder / f"step-{(verdict.step or 0) + 1:08d}")
    (place / "verdict.json").write_text(json.dumps(verdict.to_json(), indent=2, allow_nan=False) + "\n")
    (place / "verdict.txt").write_text(f"{verdict}\n")
    (place / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    excerpt = SourceExcerpt.read(verdict.source)
    if excerpt is not None:
        (place / "source.json").write_text(json.dumps(excerpt.to_json(), indent=2) + "\n")
    torch.save(dict(randomness), place / "randomness.pt")
    if batch is not None:
        torch.save(_capped(batch), place / "batch.pt")
    if culprit is not None:
        _write_repro(place, verdict, culprit)
    return place


def _write_repro(place: Path, verdict: Verdict, culprit: Before) -> None:
    name = str(culprit.func)  # such as aten.log.default
    # A memory format changes no value, and torch cannot save one; a generator does not load with weights_only.
    unsaved = (torch.memory_format, torch.Generator)
    kwargs = {key: value for key, value in culprit.kwargs.items() if not isinstance(value, unsaved)}
    call: dict[str, Any] = {"operator": name, "args": list(culprit.args), "kwargs": kwargs}
    call["num_threads"] = torch.get_num_threads()
    torch.save(tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, call), place / "operator.pt")
    (place / "repro.py").write_text(_REPRO.format(headline=verdict.headline(), operator=name))


def load_evidence(file: Path, device: torch.device | str = "cpu") -> Any:
    """What a `.pt` file of an incident holds: tensors, numbers and strings; no code in the file is run.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # a damaged pickle raises anything, TypeError and MemoryError among it
        raise ValueError(f"{file}: cannot be read ({type(error).__name__})") from error


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
    """The batch on the CPU; tensors beyond the limit are replaced by their shape and dtype in words."""
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
