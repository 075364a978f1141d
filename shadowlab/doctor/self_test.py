"""The tiny model in earnest, in a temporary folder: a few steps, a checkpoint read back, a planted fault explained."""

import tempfile
import traceback
from collections.abc import Callable, Iterator

import torch

from diagnostics import NonFiniteError
from shadowlab.console import Reporter
from shadowlab.distributed import SingleProcess, pick_device
from shadowlab.doctor.item import Item
from shadowlab.drill import find_drills, run_drill
from shadowlab.errors import UserError
from shadowlab.runs import RunFolder, read_history
from shadowlab.session import Session
from shadowlab.settings import Config, load_config
from shadowlab.stages.overfit import run_overfit
from shadowlab.stages.train import run_train

_SMALL = (
    "data.image_size=64",
    "validation.num_samples=1",
    "validation.timesteps=[0.5]",
    "validation.num_noises=1",
    "validation.light_sweep=false",
    "train.batch_size=2",
    "train.max_steps=4",
    "overfit.num_samples=2",
    "overfit.batch_size=2",
    "overfit.max_steps=12",
    "overfit.evaluate_every=12",
    "overfit.min_r2=-1000000",  # twelve steps teach nothing; what is asked for is a smaller loss
    "overfit.min_soft_iou=0",
)
_DRILL = "division"
_ASK = "please report it, with what `shadowlab doctor --json` prints"


def self_test(device: str) -> Iterator[Item]:
    """Each part on the device that a run would take; one that fails does not keep the others from being tried."""
    with tempfile.TemporaryDirectory(prefix="shadowlab-doctor-") as folder:
        config = load_config(preset="tiny", options={"device": device}, assignments=[*_SMALL, f"output_dir={folder}"])
        for part in (_learns, _resumes, _explains):
            yield _tried(lambda part=part: part(config))  # type: ignore[misc]


def _tried(part: Callable[[], str]) -> Item:
    try:
        return Item("self-test", "ok", part())
    except _WrongError as error:
        return Item("self-test", "failed", str(error), _ASK)
    except (UserError, NonFiniteError) as error:
        text, _, fix = " ".join(str(error).split()).partition("; ")
        return Item("self-test", "failed", text, fix or _ASK)
    except Exception as error:  # a broken driver or library can raise anything: it is what the user came to hear
        place = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Item("self-test", "failed", f"{problem} (at {place.filename}:{place.lineno})", _ASK)


class _WrongError(Exception):
    """A part ran to its end, and what came out is not what must."""


def _learns(config: Config) -> str:
    """overfit: data, VAE, UNet, AdamW, the fixed grid, records."""
    run = RunFolder.create(config, "overfit")
    run_overfit(_session(config, run))
    losses = _losses(run, config.overfit.max_steps)
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    if not last < first:
        raise _WrongError(f"{len(losses)} steps of overfit: the loss went from {first:.4g} to {last:.4g}; it must fall")
    return f"{len(losses)} steps of overfit: the loss fell from {first:.3g} to {last:.3g}"


def _resumes(config: Config) -> str:
    """train: a run that is stopped and resumed must come to the losses of one that was not."""
    whole, parted = RunFolder.create(config, "whole"), RunFolder.create(config, "parted")
    half = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 2})})
    run_train(_session(config, whole), resume=False)
    run_train(_session(half, parted), resume=False)
    run_train(_session(config, parted), resume=True)
    wanted, got = (torch.tensor(_losses(run, config.train.max_steps)) for run in (whole, parted))
    # A GPU's kernels may add in another order each time.
    rtol = 0.0 if pick_device(config.device).type == "cpu" else 1e-3
    if not torch.allclose(got, wanted, rtol=rtol, atol=0.0):
        raise _WrongError(f"resumed from a checkpoint, the losses are {got.tolist()}; uninterrupted {wanted.tolist()}")
    return "a run resumed from its checkpoint continues as if it had not been interrupted"


def _explains(config: Config) -> str:
    """A fault that is put in must be found where it is."""
    result = run_drill(find_drills(_DRILL)[0])
    if not result.passed or result.error is None:
        raise _WrongError(f"drill {_DRILL}: {'; '.join(result.misses) or 'no step failed'}")
    verdict = result.error.verdict
    return f"a planted {verdict.value} is traced to {verdict.op} in {verdict.module or verdict.phase}"


def _session(config: Config, run: RunFolder) -> Session:
    return Session.open(config, run, SingleProcess(pick_device(config.device)), Reporter(active=False))


def _losses(run: RunFolder, num_steps: int) -> list[float]:
    """One of each step, in order."""
    found = [record["loss"] for record in read_history(run.metrics).records()]
    if len(found) != num_steps:
        raise _WrongError(f"{run.path.name}: metrics.jsonl has {len(found)} steps of {num_steps}")
    return found
