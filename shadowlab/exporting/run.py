"""The command `export`: written aside, run, compared with the original, and only then put in its place."""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from diagnostics.files import reason_of, remove_tree
from shadowlab.console import Reporter
from shadowlab.errors import StageFailedError, UserError
from shadowlab.exporting.diffusers_folder import compare_folder, write_folder
from shadowlab.exporting.onnx_program import OnnxFormat, require_onnx
from shadowlab.exporting.programs import compare_programs, write_programs
from shadowlab.exporting.torch_program import TorchFormat
from shadowlab.inference import LoadedModel, Weights, open_model
from shadowlab.tasks import Exported

Format = Literal["diffusers", "torch", "onnx"]
LIMITS: dict[Format, float] = {"torch": 1e-4, "onnx": 1e-4}
"""Largest difference from the original, of pictures in [0, 1] and of latents, that passes; of a pipeline the task
says it."""


@dataclass(frozen=True)
class Written:
    """An export that was run and gives what the original gives."""

    folder: Path
    to: Format
    model: str
    """For people: which model, and which of its weights."""
    num_bytes: int
    difference: float
    """The largest, over all that was compared."""
    limit: float
    """The largest that passes."""
    compared: str
    """What was run, for people."""
    seconds: float

    @property
    def text(self) -> str:
        """In a line or two, for people."""
        mebibytes = self.num_bytes / 2**20
        return (
            f"ran {self.compared}: largest difference {self.difference:.2g} ({self.limit:g} passes)\n"
            f"{self.folder}: {mebibytes:,.1f} MiB, {self.seconds:.0f} s"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": True,
            "folder": str(self.folder),
            "to": self.to,
            "model": self.model,
            "bytes": self.num_bytes,
            "largest_difference": self.difference,
            "limit": self.limit,
            "compared": self.compared,
            "seconds": round(self.seconds, 1),
        }


def run_export(
    place: str, to: Format, out: Path, *, weights: Weights = "ema", output_dir: str | None = None, reporter: Reporter
) -> Written:
    """Export the model at `place` into a new folder `out`.

    Args:
        place: as `open_model` takes it.
        weights: `raw`: those of the last step in place of their average.
        output_dir: where runs are looked for by their names; None: `runs`.

    Raises:
        UserError: `out` is there already or cannot be written, or there is no such model.
        MissingDependencyError: a package is not installed.
        StageFailedError: what was written does not give what the original gives; nothing stays.
    """
    began = time.monotonic()
    if os.path.lexists(out):
        raise UserError(f"{out}: is there already; give a new folder with --out")
    if to == "onnx":
        require_onnx()
    model = open_model(place, device="cpu", weights=weights, output_dir=output_dir)
    exported = model.task.exported
    if exported is None:
        raise UserError(f"{place}: the task {model.config.task!r} has nothing that could be exported")
    reporter.say(f"model: {model.text}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({reason_of(error)}); give another folder with --out") from error
    try:
        _require_space(model, aside)
        difference, compared = _written_and_compared(model, exported, to, aside, reporter)
        limit = LIMITS.get(to, exported.code.tolerance)
        if not difference <= limit:  # NaN fails, too
            raise StageFailedError(
                f"the export differs from the original by up to {difference:.2g} ({limit:g} passes; {compared}); "
                f"nothing was left at {out}. Report it with the versions of torch and diffusers"
            )
        num_bytes = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file())
        _put(aside, out)
    except (OSError, SafetensorError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{out}: cannot be written ({reason}); nothing was left there") from error
    finally:
        remove_tree(aside)
    return Written(out, to, model.text, num_bytes, difference, limit, compared, time.monotonic() - began)


def _written_and_compared(
    model: LoadedModel, exported: Exported, to: Format, folder: Path, reporter: Reporter
) -> tuple[float, str]:
    """Largest difference, and what was compared."""
    if to == "diffusers":
        write_folder(model, exported, folder)
        reporter.say("written; loading it in a process of its own, without shadowlab ...")
        return compare_folder(model, exported, folder)
    form = TorchFormat() if to == "torch" else OnnxFormat()
    reporter.say("tracing the model ...")
    write_programs(model, exported, form, folder)
    reporter.say("written; running it ...")
    return compare_programs(model, exported, form, folder)


def _require_space(model: LoadedModel, folder: Path) -> None:
    """Raise OSError before gigabytes are half written."""
    tensors = [*model.unet.parameters(), *model.task.vae.autoencoder.parameters()]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    free = shutil.disk_usage(folder).free
    if free < num_bytes * 1.05:
        raise OSError(f"it takes {num_bytes / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free")


def _put(aside: Path, out: Path) -> None:
    """Rename, with the permissions that a new folder has here. Refuses what came there in the meantime."""
    mask = os.umask(0)
    os.umask(mask)
    aside.chmod(0o777 & ~mask)
    if os.path.lexists(out):
        raise UserError(f"{out}: somebody made it in the meantime; give a new folder with --out")
    aside.rename(out)
