"""Files of a checkpoint, read: tensors that can be trained on, JSON that is an object. What is damaged is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diagnostics import all_finite
from diagnostics.files import read_json, reason_of, require_file
from shadowlab.errors import UserError

HUGE = 2**63  # no count of a run comes to it, and Python refuses to print much larger ones


def damaged(file: Path, problem: str) -> UserError:
    """The error that names a file and the way out."""
    return UserError(f"{file}: damaged checkpoint ({problem}); remove it to use the one before")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Name -> tensor of any shape on the CPU, all finite: nothing else is ever saved.

    Raises:
        UserError: absent, no safetensors, or not finite.
    """
    try:
        require_file(file, inside=file.parent)
        tensors = load_file(file)
    except OSError as error:
        raise damaged(file, reason_of(error)) from error
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise damaged(file, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    require_finite(tensors, file)
    return tensors


def require_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise UserError that names the first tensor, of any shape, that is not."""
    if not bool(all_finite(tensors.values())):
        bad = next(name for name, tensor in tensors.items() if not bool(all_finite([tensor])))
        raise damaged(file, f"{bad} is not finite, and no such tensor is ever saved")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: absent or no JSON object.
    """
    try:
        content = read_json(file, inside=file.parent)
    except OSError as error:
        raise damaged(file, reason_of(error)) from error
    except ValueError as error:  # neither JSON nor UTF-8; nested thousandfold
        raise damaged(file, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise damaged(file, "no JSON object")
    return content


def shown(value: Any) -> str:
    """A value of a file in one short line."""
    if type(value) is int and abs(value) >= HUGE:
        return "a huge number"
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.encode("ascii", "backslashreplace").decode().split())
    return text if len(text) <= 40 else f"{text[:37]}..."
