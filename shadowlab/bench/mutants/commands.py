"""Commands of this project, run on a copied tree in processes that start warm."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics.files import read_bytes, read_json
from shadowlab.errors import StageFailedError

_MODULE = "cli.main"
_SCRIPT = Path(__file__).with_name("warm_process.py")
_LIBRARIES = (
    *("torch", "numpy", "PIL.Image", "pydantic", "typer", "rich.console", "yaml", "safetensors.torch", "psutil"),
    *("diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl"),
    *("diffusers.training_utils", "accelerate", "torch.distributed.fsdp", "torch.nn.parallel", "torch.utils.data"),
    *("torchmetrics.functional.image", "torch.utils.tensorboard"),
)
"""That the commands take seconds to import."""
_MOST_TEXT = 200_000  # characters of an output that are looked at


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    """Exit code."""
    seconds: float
    """From start to end."""
    cpu_seconds: float
    """Computed."""
    timed_out: bool
    document: dict[str, Any] | None
    """Of --json; None where it wrote none."""
    errors: str
    """Standard error."""


class WarmProcess:
    """Runs one command at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), *_LIBRARIES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def run(
        self, tree: Path, words: Sequence[str], folder: Path, *, seconds: float, environment: Mapping[str, str]
    ) -> Answer:
        """Run `shadowlab WORDS` of the copy in `tree`, in `folder`; ended after `seconds`.

        Raises:
            StageFailedError: the process that starts commands has ended.
        """
        stdout, stderr = folder / "stdout", folder / "stderr"
        command = {
            "tree": str(tree),
            "module": _MODULE,
            "words": list(words),
            "folder": str(folder),
            "environment": dict(environment),
            "seconds": seconds,
            "stdout": str(stdout),
            "stderr": str(stderr),
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise StageFailedError(
                "the process that starts the commands has ended; free memory and run again"
            ) from None
        done = self._read()
        return Answer(document=_document(stdout), errors=_text(stderr), **done)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StageFailedError("the process that starts the commands has ended; free memory and run again")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it, once its command is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _text(file: Path) -> str:
    return read_bytes(file).decode(errors="replace")[-_MOST_TEXT:] if file.exists() else ""


def _document(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
