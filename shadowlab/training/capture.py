"""What the harness needs to run a failed step again, next to the evidence that the watch has written.

incidents/step-00000412/
    step.json     where the step stood, how it was trained, and what there is of the state before it
    config.yaml   the run's
    state/step-00000411/   the state before the step, laid out as a checkpoint
    state/bad.safetensors  tensors that were not finite in it, as they were; in the checkpoint such elements are 0
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diagnostics import all_finite
from diagnostics.files import read_bytes, read_json, reason_of, replace, replace_text, require_file
from diagnostics.incidents import load_evidence
from shadowlab.distributed import is_sharded, local
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models import POLICIES
from shadowlab.runs import RunFolder
from shadowlab.settings import OptimizerConfig
from shadowlab.training.checkpoint_files import complete_checkpoints, write_checkpoint
from shadowlab.training.state import state_by_kind, training_state
from shadowlab.training.step import StepPlace
from shadowlab.training.trainee import Trainee

STATE_LIMIT_BYTES = 2 * 2**30
_VERDICT_ALONE = "--no-counterfactuals prints the verdict alone"


@dataclass(frozen=True)
class CapturedStep:
    """What step.json holds."""

    kind: str
    """`overfit` or `train`."""
    place: StepPlace
    precision: str
    seed: int
    device: str
    num_processes: int
    optimizer: OptimizerConfig
    """The stage's, which need not be the configuration's."""
    max_steps: int
    """The stage's."""
    ema_decay: float | None
    """None without an EMA."""
    bad_tensors: tuple[str, ...]
    """Names of those of the state that were not finite."""
    state_note: str
    """What was kept of the state, or why nothing was."""

    @classmethod
    def read(cls, incident: Path) -> "CapturedStep":
        """Raises UserError where step.json is damaged or of another version."""
        file = incident / "step.json"
        try:
            content = read_json(file, inside=incident)
            content["place"] = StepPlace(**content["place"])
            content["optimizer"] = OptimizerConfig(**content["optimizer"])
            content["bad_tensors"] = tuple(content["bad_tensors"])
            captured = cls(**content)
            torch.device(captured.device), POLICIES[captured.precision]  # names that are looked up later
            return captured
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{file}: cannot be read ({type(error).__name__}); see the verdict alone with --no-counterfactuals"
            ) from error


def capture_step(
    incident: Path, run: RunFolder, trainee: Trainee, place: StepPlace, *, kind: str, limit: int = STATE_LIMIT_BYTES
) -> str:
    """Add step, configuration and state to an incident. Returns what was kept of the state, in words.

    Never raises for what the disk or the state refuse: the finding must come through.
    """
    state = state_tensors(trainee)
    size = sum(tensor.numel() * tensor.dtype.itemsize for tensor in state.values())
    with _repaired(state) as bad:
        if is_sharded(trainee.unet):
            note = "not kept: it is sharded over processes; the last checkpoint before it is used"
        elif size > limit:
            note = (
                f"not kept: {size / 2**30:.1f} GiB, the limit is {limit / 2**30:g}; the last checkpoint before it is "
                "used, or the first weights where there is none"
            )
        else:
            note = _save_state(incident / "state", trainee, place, bad)
    captured = CapturedStep(
        kind=kind,
        place=place,
        precision=trainee.precision.name,
        seed=trainee.seed,
        device=str(trainee.device),
        num_processes=trainee.processes.count,
        optimizer=trainee.learning_rate_config,
        max_steps=trainee.max_steps,
        ema_decay=None if trainee.ema is None else trainee.ema.decay,
        bad_tensors=tuple(bad),
        state_note=note,
    )
    document = asdict(captured) | {"optimizer": captured.optimizer.model_dump()}
    try:
        replace(incident / "config.yaml", read_bytes(run.path / "config.yaml", inside=run.path))
        replace_text(incident / "step.json", json.dumps(document, indent=2) + "\n")
    except OSError as error:
        return f"not kept: {reason_of(error)}"
    return note


def captured_state(incident: Path) -> Path | None:
    """The checkpoint with the state before the step, where it was kept."""
    return next(iter(complete_checkpoints(incident / "state")), None)


@torch.no_grad()
def restore_bad_tensors(incident: Path, trainee: Trainee) -> None:
    """Put the tensors that were not finite before the step back as they were.

    Raises:
        UserError: they cannot be read, or are none of this model.
    """
    state, file = state_tensors(trainee), incident / "state" / "bad.safetensors"
    try:
        require_file(file, inside=incident)
        for name, tensor in load_file(file).items():
            if name not in state or state[name].shape != tensor.shape:
                raise UserError(f"{file}: {ascii(name)[:80]} is no tensor of this model's state; {_VERDICT_ALONE}")
            state[name].copy_(tensor)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        said = reason_of(error) if isinstance(error, OSError) else " ".join(str(error).split())[:80]
        raise UserError(f"{file}: cannot be read ({said}); {_VERDICT_ALONE}") from error


def captured_batches(incident: Path, device: torch.device) -> list[EncodedBatch]:
    """The micro-batches of the step.

    Raises:
        UserError: batch.pt is absent, damaged or was too large to be kept.
    """
    file = incident / "batch.pt"
    try:
        content = load_evidence(file, device)
    except ValueError as error:
        raise UserError(f"{error}; {_VERDICT_ALONE}") from error
    named = content if isinstance(content, list) else [content]
    if not all(isinstance(one, Mapping) and isinstance(one.get("positions"), Tensor) for one in named):
        raise UserError(f"{file}: holds no batch of this harness (no `positions`)")
    if any(isinstance(value, str) for one in named for value in one.values()):
        raise UserError(f"{file}: the batch was too large to be kept")
    try:
        return [EncodedBatch.from_tensors(one) for one in named]
    except ValueError as error:
        raise UserError(f"{file}: holds no batch of this harness ({error})") from None


def _save_state(folder: Path, trainee: Trainee, place: StepPlace, bad: dict[str, Tensor]) -> str:
    try:
        write_checkpoint(folder, training_state(trainee, step=place.step, position=place.first_position, identity={}))
        if bad:
            save_file({name: tensor.cpu() for name, tensor in bad.items()}, folder / "bad.safetensors")
    except (UserError, SafetensorError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"not kept: {error}"
    return f"kept; not finite in it: {', '.join(bad)}" if bad else "kept"


def state_tensors(trainee: Trainee) -> dict[str, Tensor]:
    """All tensors that a step changes, of any shape, as this process has them, under names that say what they are."""
    return {f"{kind} {name}": local(t) for kind, named in state_by_kind(trainee).items() for name, t in named.items()}


@contextmanager
def _repaired(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Inside, elements that are not finite are 0. Yields copies of the tensors that had any."""
    bad = {name: t.detach().clone() for name, t in state.items() if not bool(all_finite([t]))}
    with torch.no_grad():
        for name in bad:
            tensor = state[name]
            values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # 8-bit floats have no nan_to_num
            tensor.copy_(values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        try:
            yield bad
        finally:
            for name, copy in bad.items():
                state[name].copy_(copy)
