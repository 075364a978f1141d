"""The checks of check-forward on what the model does: VAE, flow, forward, gradients, light.

Each returns Check objects; none raises for a wrong model.

Legend: B batch, h w latents.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diagnostics.layers import LayerStatistics
from shadowlab.config import Config
from shadowlab.data.sample import Batch
from shadowlab.evaluation.metrics import psnr
from shadowlab.flow import integrate, interpolate, loss_per_sample, velocity
from shadowlab.light import PHI_RANGE, SCALAR_DIM, SIZE_RANGE, THETA_RANGE, embed_light
from shadowlab.precision import POLICIES
from shadowlab.seeding import normal
from shadowlab.stages.check_report import Check, PathTable
from shadowlab.stages.memory import SavedBytes
from shadowlab.task import EncodedBatch, Task
from shadowlab.unet import predict_velocity
from shadowlab.vae import DOWNSCALE, LATENT_CHANNELS

_GRADIENT_LATENT = 16  # side of the latents for gradient and light response
_DECODED_LATENT = 64  # side of the latents that the VAE decodes: at 1024 pixels it costs more than the whole UNet
_MIN_ROUND_TRIP_DB = 20.0
_MIN_RESPONSE = 1e-6  # relative change of the output; float32 rounding is 6e-8


def background_is_constant(batch: Batch) -> Check:
    """The picture outside the mask must be one constant, or the target's shadow leaks into the input."""
    outside = batch.object_image[(batch.mask == 0).expand_as(batch.object_image)]
    spread = float(outside.amax() - outside.amin()) if outside.numel() else 0.0
    return Check(
        "background of the object image is constant",
        spread == 0.0,
        "spread 0 outside the mask",
        f"spread {spread:.3g} over {outside.numel()} values",
        "composite the object with its mask (shadowlab.data.images.composite) before encoding",
    )


def vae(task: Task, batch: Batch, encoded: EncodedBatch, path: PathTable, *, trained: bool) -> list[Check]:
    """Latents finite, decoded range right, weights frozen in float32; a `trained` VAE gives the map back."""
    side = encoded.data.shape[-1]
    start, kept = max(0, side - _DECODED_LATENT) // 2, min(side, _DECODED_LATENT)
    decoded = task.decode(encoded.data[..., start : start + kept, start : start + kept].contiguous()).cpu()
    if kept == side:
        path.add("VAE", "decoded shadow map", decoded, "(B, 1, H, W)", (0, 1))
    else:
        path.add(
            "VAE", "decoded shadow map, centre", decoded, f"(B, 1, {kept * DOWNSCALE}, {kept * DOWNSCALE})", (0, 1)
        )
    parameters = list(task.vae.autoencoder.parameters())
    frozen = all(not p.requires_grad and p.dtype == torch.float32 for p in parameters)
    latents = torch.cat([encoded.data, encoded.concatenated[:, :LATENT_CHANNELS]])
    dtypes = {encoded.data.dtype, encoded.concatenated.dtype}
    finite, largest = bool(latents.isfinite().all()), float(latents.abs().amax())
    checks = [
        Check(
            "VAE latents are finite",
            finite and dtypes == {torch.float32},
            "finite, float32",
            f"largest magnitude {largest:.3g}, std {float(latents.std()):.3g}, {', '.join(sorted(map(str, dtypes)))}",
            "the VAE must run in float32 (SDXL's overflows float16); check its weights and the picture's range",
        ),
        Check(
            "VAE is frozen in float32",
            frozen,
            "no trainable tensor, all float32",
            f"{sum(p.requires_grad for p in parameters)} trainable of {len(parameters)}, {parameters[0].dtype}",
            "do not pass the VAE to the optimizer or to .half()",
        ),
    ]
    if trained:
        pixels = slice(start * DOWNSCALE, (start + kept) * DOWNSCALE)
        quality = float(psnr(decoded, task.target(batch)[..., pixels, pixels].cpu()).amin())
        checks.append(
            Check(
                "VAE gives the shadow map back",
                quality >= _MIN_ROUND_TRIP_DB,
                f"PSNR >= {_MIN_ROUND_TRIP_DB:g} dB",
                f"{quality:.1f} dB",
                "this VAE does not know such pictures, or scaling_factor is wrong: check model.vae",
            )
        )
    return checks


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
def forward(config: Config, unet: UNet2DConditionModel, encoded: EncodedBatch, path: PathTable) -> list[Check]:
    """One forward pass at the configured size and precision, every leaf module measured."""
    precision, device = POLICIES[config.precision], encoded.data.device
    noise = normal(encoded.data.shape, config.seed, "check").to(device)
    t = torch.linspace(0.1, 0.9, len(encoded.ids), device=device)
    x_t = interpolate(noise, encoded.data, t)
    path.add("UNet", "t", t, "(B)", (0, 1))
    path.add("UNet", "x_t", x_t, "(B, 4, h, w)", None)
    path.add("UNet", "input [x_t, object, mask]", torch.cat([x_t, encoded.concatenated], 1), "(B, 9, h, w)", None)
    seen: dict[str, Tensor] = {}
    handles = [
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
    with layers.recording(), precision.autocast(device):
        predicted = predict_velocity(unet, x_t, t, encoded.concatenated, encoded.embedding)
    unet.train()
    layers.detach()
    for handle in handles:
        handle.remove()
    path.add("UNet", "timestep 1000 (1 - t)", seen["timesteps"], "(B)", (0, 1000))
    path.add("UNet", "time embedding", seen["embedding"], "(B, D)", None)
    path.add("UNet", "velocity", predicted, "(B, 4, h, w)", None)
    path.add("loss", "loss per sample", loss_per_sample(predicted, velocity(noise, encoded.data)), "(B)", None)
    measured = {name: kinds["activation"] for name, kinds in layers.collect().items()}
    bad = [name for name, statistics in measured.items() if statistics.num_nonfinite]
    largest = max(measured, key=lambda name: measured[name].max_abs)
    low = precision.weights_dtype if precision.autocast_dtype is None else precision.autocast_dtype
    dtypes = {name: str(seen[name].dtype).removeprefix("torch.") for name in ("timesteps", "sinusoids", "embedding")}
    wanted = 1000.0 * (1.0 - t)
    off = float((seen["timesteps"].float() - wanted).abs().amax())
    islands = ("timesteps", "sinusoids") if precision.weights_dtype != torch.float32 else tuple(dtypes)
    return [
        Check(
            "timesteps are 1000 (1 - t)",
            off < 1e-3,
            f"{float(wanted[0]):g} at t = {float(t[0]):g}",
            f"{float(seen['timesteps'].flatten()[0]):g}, off by {off:.3g} at most",
            "SDXL's embedding knows 0 .. 999 with 999 = noise: unscaled or reversed, every t looks alike or backwards",
        ),
        Check(
            "t and its embedding are float32",
            all(dtypes[name] == "float32" for name in islands) and encoded.embedding.dtype == torch.float32,
            f"float32 for {', '.join(islands)}, light embedding",
            ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items()),
            "half types lose integers above 256 or 2048: keep t and its embedding out of autocast",
        ),
        Check(
            f"forward is finite in {config.precision}",
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


def gradients(config: Config, unet: UNet2DConditionModel, encoded: EncodedBatch) -> list[Check]:
    """Finite gradients reach every trainable tensor.

    Each gradient is measured and dropped as it comes, so that no second copy of the weights is ever held.
    """
    precision, device = POLICIES[config.precision], encoded.data.device
    small = _shrunk(encoded.select(slice(0, 1)))
    noise = normal(small.data.shape, config.seed, "check").to(device)
    t = torch.full((1,), 0.5, device=device)
    norms: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            norms[name] = parameter.grad.detach().float().norm()
            parameter.grad = None

        return hook

    named = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    handles = [p.register_post_accumulate_grad_hook(note(name)) for name, p in named.items()]
    scaler = torch.amp.GradScaler(device.type) if precision.scales_gradients else None
    with precision.autocast(device):
        x_t = interpolate(noise, small.data, t)
        predicted = predict_velocity(unet, x_t, t, small.concatenated, small.embedding)
    loss = loss_per_sample(predicted, velocity(noise, small.data)).mean()
    # A calibrated scale: the initial 65536 overflows float16 by design and only says that calibration is due.
    (loss * (1024.0 if scaler is not None else 1.0)).backward()
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
            f"gradients are finite in {config.precision}",
            not bad,
            "0 tensors with non-finite gradient",
            f"{len(bad)} tensors{', first ' + bad[0] if bad else ''}",
            "use --precision bf16 or fp32, or look at the largest activations",
        ),
    ]


def activation_bytes(config: Config, unet: UNet2DConditionModel, encoded: EncodedBatch) -> float:
    """Bytes that autograd saves for one sample at the configured size.

    Measured at two small sizes: what grows with the area is activations, what does not (autocast's copies of the
    weights, the time embedding) is not multiplied.
    """
    precision, device = POLICIES[config.precision], encoded.data.device
    saved = {}
    for side in (_GRADIENT_LATENT // 2, _GRADIENT_LATENT):
        small = _resized(encoded.select(slice(0, 1)), side)
        t = torch.full((1,), 0.5, device=device)
        with SavedBytes(unet) as counted, precision.autocast(device):
            predict_velocity(unet, small.data, t, small.concatenated, small.embedding)
        saved[side] = counted.total
    low, high = saved
    per_area = (saved[high] - saved[low]) / (high**2 - low**2)
    return saved[low] + per_area * (encoded.data.shape[-1] ** 2 - low**2)


def light_response(config: Config, unet: UNet2DConditionModel, encoded: EncodedBatch, batch: Batch) -> list[Check]:
    """Output and gradient answer to each of theta, phi and size."""
    precision, device = POLICIES[config.precision], encoded.data.device
    small = _shrunk(encoded.select(slice(0, 1)))
    light = batch.light[:1].cpu().repeat(4, 1)
    for row, (column, (low, high)) in enumerate(enumerate((THETA_RANGE, PHI_RANGE, SIZE_RANGE)), start=1):
        middle = (low + high) / 2
        light[row, column] = middle + (high - low) / 4 if light[row, column] <= middle else middle - (high - low) / 4
    embedding = embed_light(light).to(device)
    noise = normal(small.data.shape, config.seed, "check").to(device)
    t = torch.full((1,), 0.5, device=device)
    x_t = interpolate(noise, small.data, t)
    unet.requires_grad_(False)
    with torch.no_grad(), precision.autocast(device):
        x, times, conditions = (tensor.expand(4, *tensor.shape[1:]) for tensor in (x_t, t, small.concatenated))
        outputs = predict_velocity(unet, x, times, conditions, embedding)
    asked = embedding[:1].clone().requires_grad_()
    with precision.autocast(device):
        predicted = predict_velocity(unet, x_t, t, small.concatenated, asked)
    loss_per_sample(predicted, velocity(noise, small.data)).mean().backward()
    unet.requires_grad_(True)
    assert asked.grad is not None
    scale = float(outputs[0].norm()) or 1.0  # a silent model answers with 0, not with a division by it
    checks = []
    for row, name in enumerate(("theta", "phi", "size"), start=1):
        change = float((outputs[row] - outputs[0]).norm()) / scale
        gradient = float(asked.grad[:, (row - 1) * SCALAR_DIM : row * SCALAR_DIM].norm())
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


def _shrunk(encoded: EncodedBatch) -> EncodedBatch:
    """The sample with its latents area-averaged to at most 16 x 16."""
    return _resized(encoded, min(_GRADIENT_LATENT, encoded.data.shape[-1]))


def _resized(encoded: EncodedBatch, side: int) -> EncodedBatch:
    resize = torch.nn.functional.adaptive_avg_pool2d
    return EncodedBatch(
        ids=encoded.ids,
        positions=encoded.positions,
        data=resize(encoded.data, side),
        concatenated=resize(encoded.concatenated, side),
        embedding=encoded.embedding,
    )
