"""The checks of check-forward on what the model does: forward, gradients, response to each condition.

Each returns Check objects; none raises for a wrong model. Loss and gradients are those of the training step itself.

Legend: B batch, h w latents.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.statistics import LayerStatistics
from shadowlab.checks import Check, PathTable
from shadowlab.encoded_batch import LATENT_CHANNELS, EncodedBatch, joined
from shadowlab.models import ForwardSeen, ModelSpec, predict
from shadowlab.seeding import normal
from shadowlab.tasks import Task, TaskBatch
from shadowlab.training import StepPlace, Trainee, objective_loss

SMALL_LATENT = 16  # side of the latents for gradients and responses
NOISY_LIMITS = (-40.0, 40.0)  # scaled latents have about unit deviation; SDXL's without scaling_factor reach 50
_MIN_RESPONSE = 1e-6  # relative change of the output; float32 rounding is 6e-8


@torch.no_grad()
def forward(trainee: Trainee, spec: ModelSpec, encoded: EncodedBatch, path: PathTable) -> list[Check]:
    """The training loss once, at the configured size and precision, every leaf module measured.

    t is not taken on trust from the step: the objective works it out from what hooks on the model see.
    """
    precision, objective = trainee.precision, trainee.objective
    seen, first_bad, measured, losses = _watched_forward(trainee, encoded)
    weights, low = precision.weights_dtype, precision.autocast_dtype or precision.weights_dtype
    x_t = seen["input"][:, :LATENT_CHANNELS]
    sides = ", ".join(spec.sides)
    path.add("UNet", "x_t", x_t, f"(B, 4, {sides})", NOISY_LIMITS, weights)
    inputs = f"input [{', '.join(spec.inputs)}]"
    path.add("UNet", inputs, seen["input"], f"(B, {spec.in_channels}, {sides})", NOISY_LIMITS, weights)
    path.add("UNet", f"timestep {objective.timestep}", seen["timesteps"], "(B)", (0, 1000))
    path.add("UNet", "time embedding", seen["embedding"], "(B, D)", None, weights)
    path.add("UNet", objective.prediction, seen["prediction"], f"(B, 4, {sides})", None, low)
    path.add("loss", "loss per sample", losses, "(B)", (0, math.inf))
    noise = torch.stack([normal(encoded.data.shape[1:], trainee.seed, "noise", p) for p in encoded.positions.tolist()])
    forward_seen = ForwardSeen(
        x_t=x_t.cpu(),
        timesteps=seen["timesteps"].cpu(),
        prediction=seen["prediction"].cpu(),
        losses=losses.cpu(),
        noise=noise,
        data=encoded.data.cpu(),
        weights_dtype=weights,
        valid=None if encoded.valid is None else encoded.valid.cpu(),
    )
    bad = [name for name, statistics in measured.items() if statistics.num_nonfinite]
    largest = max(measured, key=lambda name: measured[name].max_abs)
    dtypes = {name: str(seen[name].dtype).removeprefix("torch.") for name in ("timesteps", "sinusoids", "embedding")}
    islands = ("timesteps", "sinusoids") if precision.weights_dtype != torch.float32 else tuple(dtypes)
    conditions = encoded.conditions.named().values()
    named = (*islands, *([spec.embedding] if spec.embedding_dim is not None else []))
    return [
        *objective.check_forward(forward_seen),
        Check(
            "t and its embedding are float32",
            all(dtypes[name] == "float32" for name in islands) and {one.dtype for one in conditions} <= {torch.float32},
            f"float32 for {', '.join(named)}",
            ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items()),
            "half types lose integers above 256 or 2048: keep t and its embedding out of autocast",
        ),
        Check(
            f"forward is finite in {precision.name}",
            not bad,
            f"0 of {len(measured)} layers with non-finite values",
            f"{len(bad)} layers{', first ' + first_bad[0] if first_bad else ''}; "
            f"largest {measured[largest].max_abs:.3g} at {largest} ({low} reaches {torch.finfo(low).max:.3g})",
            "use --precision bf16 or fp32, or check the loaded weights",
        ),
    ]


def _watched_forward(
    trainee: Trainee, encoded: EncodedBatch
) -> tuple[dict[str, Tensor], list[str], dict[str, Any], Tensor]:
    """What hooks saw of inputs and outputs, the first layer that was not finite, activations, losses (B,)."""
    unet = trainee.unet
    seen: dict[str, Tensor] = {}
    handles = [
        unet.register_forward_hook(lambda m, i, o: seen.update(input=i[0], prediction=o.sample)),
        unet.time_proj.register_forward_hook(lambda m, i, o: seen.update(timesteps=i[0], sinusoids=o)),
        unet.time_embedding.register_forward_hook(lambda m, i, o: seen.update(embedding=o)),
    ]
    first_bad: list[str] = []  # by call: a shared activation is called before and after the culprit
    handles += [
        module.register_forward_hook(partial(_note_bad_output, first_bad, name))
        for name, module in unet.named_modules()
        if not any(module.children())
    ]
    layers = LayerStatistics(unet)
    unet.eval()
    with layers.recording():
        losses = objective_loss(trainee, unet, encoded, StepPlace(0, 0, len(encoded.ids)))
    unet.train()
    layers.detach()
    for handle in handles:
        handle.remove()
    return seen, first_bad, {name: kinds["activation"] for name, kinds in layers.collect().items()}, losses


def _note_bad_output(found: list[str], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
        found.append(name)


def gradients(trainee: Trainee, spec: ModelSpec, encoded: EncodedBatch) -> list[Check]:
    """Finite gradients of the training loss reach every trainable tensor, and every channel that the model is given.

    Each gradient is measured and dropped as it comes, so that no second copy of the weights is ever held.
    """
    small = encoded.select(slice(0, 1)).resized(min(SMALL_LATENT, encoded.data.shape[-1]))
    norms: dict[str, Tensor] = {}
    channels: list[float] = []

    def note(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            norms[name] = parameter.grad.detach().float().norm()
            if name == "conv_in.weight":
                channels.extend(parameter.grad.detach().float().flatten(2).norm(dim=(0, 2)).tolist())
            parameter.grad = None

        return hook

    named = trainee.parameters()
    handles = [p.register_post_accumulate_grad_hook(note(name)) for name, p in named.items()]
    loss = objective_loss(trainee, trainee.unet, small, StepPlace(0, 0, 1)).mean()
    # A calibrated scale: the initial 65536 overflows float16 by design and only says that calibration is due.
    (loss * (1024.0 if trainee.scaler is not None else 1.0)).backward()
    for handle in handles:
        handle.remove()
    unreached = [name for name in named if name not in norms]
    zero = [name for name, norm in norms.items() if float(norm) == 0.0]
    bad = [name for name, norm in norms.items() if not bool(norm.isfinite())]
    missing = unreached + zero
    dead = [str(channel) for channel, norm in enumerate(channels) if norm == 0.0]
    of_channels = Check(
        "every input channel gets a gradient",
        not dead,
        f"conv_in learns from {spec.in_channels} channels: {', '.join(spec.inputs)}",
        f"none for {', '.join(dead)}" if dead else f"{len(channels)} of {len(channels)}",
        "what is concatenated is constant zero or never arrives: shadowlab/models/adapter.py, predict",
    )
    return [
        *([of_channels] if channels else []),
        Check(
            "gradients reach every trainable tensor",
            not missing,
            f"{len(named):,} of {len(named):,} tensors",
            f"{len(named) - len(missing):,} of {len(named):,}" + (f"; not {', '.join(missing[:8])}" if missing else ""),
            "these never learn: something detaches them (no_grad, .item(), a removed path) or float16 underflows",
        ),
        Check(
            f"gradients are finite in {trainee.precision.name}",
            not bad,
            "0 tensors with non-finite gradient",
            f"{len(bad)} tensors{', first ' + bad[0] if bad else ''}",
            "use --precision bf16 or fp32, or look at the largest activations",
        ),
    ]


def responses(trainee: Trainee, task: Task[Any], batch: TaskBatch, encoded: EncodedBatch) -> list[Check]:
    """The output, and the gradient of the training loss, answer to each condition that the task probes."""
    unet, device, objective = trainee.unet, trainee.device, trainee.objective
    first = torch.tensor([0])
    small = encoded.select(first).resized(min(SMALL_LATENT, encoded.data.shape[-1]))
    probes = task.probes(batch.select(first), small, "near")
    if not probes:
        return []
    noise = normal(small.data.shape, trainee.seed, "check").to(device)
    t = torch.full((1,), 0.5, device=device)
    small = probes[0].reference
    all_of_them = joined([small, *(probe.encoded for probe in probes)])
    count = len(all_of_them)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    unet.requires_grad_(False)
    try:
        with torch.no_grad(), trainee.precision.autocast(device):
            x_t = objective.noised(noise, small.data, t).expand(count, *noise.shape[1:])
            outputs = predict(unet, x_t, objective.timesteps(t.expand(count)), all_of_them.conditions)
        asked = {name: own.clone().requires_grad_() for name, own in small.conditions.named().items()}
        loss = objective_loss(trainee, unet, small.with_conditions(**asked), StepPlace(0, 0, 1)).mean()
        if loss.requires_grad:
            loss.backward()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    scale = float(outputs[0].norm()) or 1.0  # a silent model answers with 0, not with a division by it
    checks = []
    for row, probe in enumerate(probes, start=1):
        change = float((outputs[row] - outputs[0]).norm()) / scale
        changed = probe.encoded.conditions.named()
        gradient = math.hypot(*(_gradient(asked[name], other, probe.part) for name, other in changed.items()))
        checks.append(
            Check(
                f"output and gradient answer to {probe.name}",
                change > _MIN_RESPONSE and gradient > 0.0,
                f"relative change > {_MIN_RESPONSE:g}, gradient > 0",
                f"change {change:.2e} {probe.change}, gradient {gradient:.2e}",
                f"{probe.name} does not reach the model: check how it enters, and that what comes of it is added",
            )
        )
    return checks


def _gradient(asked: Tensor, other: Tensor, part: slice | None) -> float:
    """Norm of the gradient of `asked` (1, ...) in a `Probe.part` of it; 0 where `other` (1, ...) is the same."""
    differs = asked.detach() != other
    if asked.grad is None or not bool(differs.any()):
        return 0.0
    return float((asked.grad[differs] if part is None else asked.grad[..., part]).norm())
