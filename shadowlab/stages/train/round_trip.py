"""A checkpoint's round trip, before a run needs it: what is saved comes back, all of it, and training goes on from it.

The run's own code saves and loads a stand-in: the run's task, precision, optimizer and EMA around a UNet of a few
thousand parameters and latents of 8 x 8: a second, whatever is trained. A first trainee makes two
steps and is saved; a second one of other weights, as a resume builds it, loads that and must be the first in every bit,
and make the same next step.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.distributed import SingleProcess
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models import architecture_config, unwritten_unet
from shadowlab.session import Session
from shadowlab.settings import Config
from shadowlab.training import (
    StepPlace,
    Trainee,
    build_trainee,
    load_checkpoint,
    prepare_unet,
    read_tensors,
    save_checkpoint,
    state_tensors,
    training_step,
)

_SIDE = 8  # of the stand-in's latents
_STEPS = 2  # that the first one makes
_SMALL = {"block_out_channels": [8, 8, 16], "attention_head_dim": [1, 1, 2], "norm_num_groups": 4, "sample_size": _SIDE}
_SAVING = "shadowlab/training/checkpoint.py, save_checkpoint"
_LOADING = "shadowlab/training/checkpoint.py, load_checkpoint"


def round_trip_fault(session: Session, sample: EncodedBatch) -> str | None:
    """What a checkpoint loses or changes, with the place in the code; None where nothing.

    Args:
        sample: encoded samples of the run, one or more: their data and conditions train the stand-in.
    """
    config = _stand_in_config(session.config)
    batch = sample.select(torch.arange(2) % len(sample.ids)).resized(min(_SIDE, sample.data.shape[-1]))
    batch = _on_cpu(batch)
    first, second = (_stand_in(session, config, batch, seed) for seed in (0, 1))
    for step in range(_STEPS):
        _take(first, batch, step)
    skipped = 0 if first.scaler is None else 1  # a gradient scaler may skip a step: counters that good steps leave at 0
    first.watch.num_skipped = first.watch.skips_in_a_row = skipped
    saved = _STEPS + skipped
    kept = _kept(first)
    with tempfile.TemporaryDirectory(prefix="shadowlab-round-trip-") as folder:
        place = {"step": saved, "position": saved * len(batch)}
        path = save_checkpoint(Path(folder), first, **place, identity={"stand-in": 1})
        if (changed := _first_other(kept, _kept(first))) is not None:
            return f"{_SAVING}: saving changed {changed}"
        if (written := _written_fault(path, first)) is not None:
            return f"{_SAVING}: {written}"
        try:
            state = load_checkpoint(path, second, identity={"stand-in": 1})
        except UserError as error:
            return f"{_LOADING}: what save_checkpoint has written is refused: {error}"
    if (lost := next((name for name, value in place.items() if state.get(name) != value), None)) is not None:
        return f"{_LOADING}: {lost} is {state.get(lost)}, {place[lost]} was saved"
    if (other := _first_other(kept, _kept(second))) is not None:
        return f"{_LOADING}: {other} is not what was saved"
    return _next_step_fault(first, second, batch, saved)


def _next_step_fault(first: Trainee, second: Trainee, batch: EncodedBatch, step: int) -> str | None:
    """Both make the step after the saved one."""
    losses = [_take(one, batch, step) for one in (first, second)]
    if losses[0] != losses[1]:
        return f"{_LOADING}: the loss of the first step after it is {losses[1]:.6g} in place of {losses[0]:.6g}"
    other = _first_other(_kept(first), _kept(second))
    return None if other is None else f"{_LOADING}: after the next step {other} differs"


def _kept(trainee: Trainee) -> dict[str, Any]:
    """All that a checkpoint keeps: copies of tensors, and what is no tensor."""
    found: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in state_tensors(trainee).items()}
    found["the count of skipped steps"] = (trainee.watch.num_skipped, trainee.watch.skips_in_a_row)
    if trainee.ema is not None:
        found["the EMA's count of updates"] = trainee.ema.optimization_step
    if trainee.scaler is not None:
        found |= {f"the gradient scaler's {name}": value for name, value in trainee.scaler.state_dict().items()}
    return found


def _stand_in_config(config: Config) -> Config:
    """The run's, without what is about speed and size, at a rate that moves every weight. Without a gradient scaler in
    float32: float16 weights need not survive a step."""
    return config.model_copy(
        update={
            "precision": "fp16" if config.precision == "fp16" else "fp32",
            "train": config.train.model_copy(update={"trainable": None}),
            "model": config.model.model_copy(update={"compile": False, "gradient_checkpointing": False}),
            "optimizer": config.optimizer.model_copy(
                update={"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"}
            ),
            "diagnostics": config.diagnostics.model_copy(update={"statistics_every": 0}),
        }
    )


def _stand_in(session: Session, config: Config, batch: EncodedBatch, seed: int) -> Trainee:
    spec, device = session.task.spec, torch.device("cpu")
    architecture = architecture_config("tiny") | _SMALL
    if batch.conditions.tokens is not None:
        architecture["cross_attention_dim"] = batch.conditions.tokens.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = unwritten_unet(architecture, spec)
    try:
        prepare_unet(unet, config, spec, device)
    except UserError:  # patterns that name parameters of the whole model alone: then half of these train
        prepare_unet(unet, config, replace(spec, trainable=("*.weight",)), device)
    trainee = build_trainee(
        config,
        unet,
        session.task.objective,
        SingleProcess(device),
        config.optimizer,
        config.train.max_steps,
        ema_decay=config.train.ema_decay,
    )
    trainee.watch.detach()
    if trainee.scaler is not None:  # the first scale overflows float16 by design: nothing would move
        trainee.scaler.load_state_dict(trainee.scaler.state_dict() | {"scale": 64.0})
    return trainee


def _on_cpu(batch: EncodedBatch) -> EncodedBatch:
    conditions = {name: tensor.cpu() for name, tensor in batch.conditions.named().items()}
    valid = None if batch.valid is None else batch.valid.cpu()
    return replace(batch.with_conditions(**conditions), data=batch.data.cpu(), valid=valid)


def _take(trainee: Trainee, batch: EncodedBatch, step: int) -> float:
    first = step * len(batch)
    placed = batch.at_positions(torch.arange(first, first + len(batch)))
    return training_step(trainee, [placed], StepPlace(step, first, len(batch))).loss


def _written_fault(path: Path, trainee: Trainee) -> str | None:
    """Whether the files hold the weights where weights belong, and the averages where averages do: `load_checkpoint`
    would put right what `save_checkpoint` exchanged."""
    weights = {name: parameter.detach() for name, parameter in trainee.unet.named_parameters()}
    held = {"unet": weights}
    if trainee.ema is not None:
        held["ema"] = weights | dict(zip(trainee.parameters(), trainee.ema.shadow_params, strict=True))
    for folder, wanted in held.items():
        file = path / folder / "diffusion_pytorch_model.safetensors"
        if not file.is_file():
            return f"{folder}/ is not there"
        other = _first_other(wanted, read_tensors(file))
        if other is not None:
            return f"{other} in {folder}/ is not the trainee's"
    return None


def _first_other(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first thing that is not there, or not the same in every bit."""
    names = [*wanted, *(name for name in found if name not in wanted)]
    return next((name for name in names if not _same(wanted.get(name), found.get(name))), None)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other
