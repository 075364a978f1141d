"""The checks of check-forward on what the model does: flow, forward, gradients, response to the light.

Each returns Check objects; none raises for a wrong model. Loss and gradients are those of the training step itself.

Legend: B batch, h w latents.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.statistics import LayerStatistics
from shadowlab.models import LATENT_CHANNELS, integrate, interpolate, predict_velocity, velocity
from shadowlab.seeding import normal
from shadowlab.stages.check_forward.input_checks import other_light
from shadowlab.stages.check_forward.report import Check, PathTable
from shadowlab.tasks import SCALAR_DIM, Batch, EncodedBatch, embed_light
from shadowlab.training import StepPlace, Trainee, flow_loss

SMALL_LATENT = 16  # side of the latents for gradient and light response
LATENT_LIMITS = (-30.0, 30.0)  # scaled latents have about unit deviation; SDXL's without scaling_factor reach 50
NOISY_LIMITS = (-40.0, 40.0)  # the same between noise and data
EMBEDDING_LIMITS = (-math.sqrt(SCALAR_DIM / 2), math.sqrt(SCALAR_DIM / 2))  # norm of each scalar's vector
_MIN_RESPONSE = 1e-6  # relative change of the output; float32 rounding is 6e-8


def flow_reaches_data(encoded: EncodedBatch, seed: int) -> Check:
    """The line goes from noise to data, and integrating the true velocity does, in one step and in eight."""
    noise = normal(encoded.data.shape, seed, "check").to(encoded.data.device)
    true = velocity(noise, encoded.data)
    t = torch.zeros(len(noise), device=noise.device)
    errors = [integrate(lambda x, t: true, noise, n) - encoded.data for n in (1, 8)]
    errors += [interpolate(noise, encoded.data, t) - noise, interpolate(noise, encoded.data, t + 1) - encoded.data]
    worst = float(torch.stack(errors).abs().amax())
    scale = float(encoded.data.abs().amax()) + float(noise.abs().amax())
    limit = 16 * torch.finfo(torch.float32).eps * scale
    return Check(
        "the true velocity leads from noise to data",
        worst <= limit,
        f"error <= {limit:.1e}",
        f"{worst:.1e}",
        "the flow's direction is reversed: velocity is data - noise, t = 0 is noise, t = 1 is data",
    )


@torch.no_grad()
def forward(trainee: Trainee, encoded: EncodedBatch, path: PathTable) -> list[Check]:
    """The training loss once, at the configured size and precision, every leaf module measured.

    t is not taken from the step's word: it follows from where its x_t lies between the noise and the data.
    """
    unet, precision = trainee.unet, trainee.precision
    seen: dict[str, Tensor] = {}
    handles = [
        unet.register_forward_hook(lambda m, i, o: seen.update(input=i[0], velocity=o.sample)),
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
        losses = flow_loss(trainee, unet, encoded, StepPlace(0, 0, len(encoded.ids)))
    unet.train()
    layers.detach()
    for handle in handles:
        handle.remove()
    weights, low = precision.weights_dtype, precision.autocast_dtype or precision.weights_dtype
    x_t = seen["input"][:, :LATENT_CHANNELS]
    path.add("UNet", "x_t", x_t, "(B, 4, h, w)", NOISY_LIMITS, weights)
    path.add("UNet", "input [x_t, object, mask]", seen["input"], "(B, 9, h, w)", NOISY_LIMITS, weights)
    path.add("UNet", "timestep 1000 (1 - t)", seen["timesteps"], "(B)", (0, 1000))
    path.add("UNet", "time embedding", seen["embedding"], "(B, D)", None, weights)
    path.add("UNet", "velocity", seen["velocity"], "(B, 4, h, w)", None, low)
    path.add("loss", "loss per sample", losses, "(B)", (0, math.inf))
    measured = {name: kinds["activation"] for name, kinds in layers.collect().items()}
    bad = [name for name, statistics in measured.items() if statistics.num_nonfinite]
    largest = max(measured, key=lambda name: measured[name].max_abs)
    dtypes = {name: str(seen[name].dtype).removeprefix("torch.") for name in ("timesteps", "sinusoids", "embedding")}
    noise = torch.stack([normal(encoded.data.shape[1:], trainee.seed, "noise", p) for p in encoded.positions.tolist()])
    line = (encoded.data.cpu() - noise).double()
    t = ((x_t.cpu().double() - noise) * line).flatten(1).sum(dim=1) / line.square().flatten(1).sum(dim=1)
    wanted, timesteps = 1000.0 * (1.0 - t), seen["timesteps"].cpu().double()
    off = float((timesteps - wanted).abs().amax())
    target_loss = (seen["velocity"].cpu().double() - line).square().flatten(1).mean(dim=1)
    is_the_flows = torch.isclose(losses.cpu().double(), target_loss, rtol=1e-3, equal_nan=True)  # NaN is told below
    islands = ("timesteps", "sinusoids") if precision.weights_dtype != torch.float32 else tuple(dtypes)
    return [
        Check(
            "timesteps are 1000 (1 - t)",
            off < (0.05 if weights == torch.float32 else 5.0),  # x_t rounded to a half type
            f"{float(wanted[0]):.4g} at t = {float(t[0]):.4g}",
            f"{float(timesteps.flatten()[0]):.4g}, off by {off:.3g} at most",
            "SDXL's embedding knows 0 .. 999 with 999 = noise: unscaled or reversed, every t looks alike or backwards",
        ),
        Check(
            "the training loss is the flow's",
            bool(is_the_flows.all()),
            f"mean (velocity - (data - noise))^2 = {float(target_loss[0]):.4g}",
            f"{float(losses[0]):.4g}",
            "flow_loss in shadowlab/training/step.py compares with something else, such as the reversed velocity",
        ),
        Check(
            "t and its embedding are float32",
            all(dtypes[name] == "float32" for name in islands) and encoded.embedding.dtype == torch.float32,
            f"float32 for {', '.join(islands)}, light embedding",
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


def _note_bad_output(found: list[str], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
        found.append(name)


def gradients(trainee: Trainee, encoded: EncodedBatch) -> list[Check]:
    """Finite gradients of the training loss reach every trainable tensor.

    Each gradient is measured and dropped as it comes, so that no second copy of the weights is ever held.
    """
    small = encoded.select(slice(0, 1)).resized(min(SMALL_LATENT, encoded.data.shape[-1]))
    norms: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            norms[name] = parameter.grad.detach().float().norm()
            parameter.grad = None

        return hook

    named = trainee.parameters()
    handles = [p.register_post_accumulate_grad_hook(note(name)) for name, p in named.items()]
    loss = flow_loss(trainee, trainee.unet, small, StepPlace(0, 0, 1)).mean()
    # A calibrated scale: the initial 65536 overflows float16 by design and only says that calibration is due.
    (loss * (1024.0 if trainee.scaler is not None else 1.0)).backward()
    for handle in handles:
        handle.remove()
    unreached = [name for name in named if name not in norms]
    zero = [name for name, norm in norms.items() if float(norm) == 0.0]
    bad = [name for name, norm in norms.items() if not bool(norm.isfinite())]
    missing = unreached + zero
    return [
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


def light_response(trainee: Trainee, encoded: EncodedBatch, batch: Batch) -> list[Check]:
    """The output, and the gradient of the training loss, answer to each of theta, phi and size."""
    unet, device = trainee.unet, trainee.device
    small = encoded.select(slice(0, 1)).resized(min(SMALL_LATENT, encoded.data.shape[-1]))
    light = batch.light[:1].cpu().repeat(4, 1)
    light[[1, 2, 3], [0, 1, 2]] = other_light(light[:1])[0]
    embedding = embed_light(light).to(device)
    noise = normal(small.data.shape, trainee.seed, "check").to(device)
    t = torch.full((1,), 0.5, device=device)
    unet.requires_grad_(False)
    with torch.no_grad(), trainee.precision.autocast(device):
        x_t = interpolate(noise, small.data, t)
        x, times, others = (tensor.expand(4, *tensor.shape[1:]) for tensor in (x_t, t, small.concatenated))
        outputs = predict_velocity(unet, x, times, others, embedding)
    asked = embedding[:1].clone().requires_grad_()
    loss = flow_loss(trainee, unet, replace(small, embedding=asked), StepPlace(0, 0, 1)).mean()
    if loss.requires_grad:
        loss.backward()
    unet.requires_grad_(True)
    answer = torch.zeros_like(asked) if asked.grad is None else asked.grad
    scale = float(outputs[0].norm()) or 1.0  # a silent model answers with 0, not with a division by it
    checks = []
    for row, name in enumerate(("theta", "phi", "size"), start=1):
        change = float((outputs[row] - outputs[0]).norm()) / scale
        gradient = float(answer[:, (row - 1) * SCALAR_DIM : row * SCALAR_DIM].norm())
        checks.append(
            Check(
                f"output and gradient answer to {name}",
                change > _MIN_RESPONSE and gradient > 0.0,
                f"relative change > {_MIN_RESPONSE:g}, gradient > 0",
                f"change {change:.2e} from {float(light[0, row - 1]):g} to {float(light[row, row - 1]):g}, "
                f"gradient {gradient:.2e}",
                "the light does not reach the UNet: check class_embedding and that its output is added",
            )
        )
    return checks
