"""Faults that arrive with the batch, or that are made of it before the model sees it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def nan_pixel() -> Scene:
    """A decoder left one NaN in one image; convolution and pooling spread it."""
    torch.manual_seed(0)
    batch = {"images": torch.randn(5, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 3, 0])}
    batch["images"][2, 1, 3, 4] = torch.nan
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = training_step(lambda: F.cross_entropy(model(batch["images"]), batch["labels"]), optimizer)
    return Scene(step, model, optimizer, batch)


def nan_cached_latent() -> Scene:
    """One latent of a cache on disk is NaN; gradients of three micro-batches are accumulated, the second has it."""
    torch.manual_seed(1)
    batch = {"latents": torch.randn(6, 4, 4, 4), "noise": torch.randn(6, 4, 4, 4)}
    batch["latents"][3] = torch.nan
    model = nn.Conv2d(4, 4, 3, padding=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for latents, noise in zip(batch["latents"].chunk(3), batch["noise"].chunk(3), strict=True):
            loss = F.mse_loss(model(latents + noise), noise) / 3
            loss.backward()
            total = total + loss.detach()
        optimizer.step()
        return total

    return Scene(step, model, optimizer, batch)


def nan_in_masked_padding() -> Scene:
    """A text encoder wrote NaN into padding; its attention weight is zero, and zero times NaN is NaN."""
    torch.manual_seed(2)
    batch = {
        "queries": torch.randn(3, 4, 8),
        "context": torch.randn(3, 6, 8),
        "valid": torch.ones(3, 6, dtype=torch.bool),
    }
    batch["valid"][1, 4:] = False
    batch["context"][1, 4:] = torch.nan

    class CrossAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, queries: Tensor, context: Tensor, valid: Tensor) -> Tensor:
            scores = queries @ self.key(context).transpose(1, 2) / 8**0.5
            return scores.masked_fill(~valid[:, None], -torch.inf).softmax(-1) @ self.value(context)

    model = CrossAttention()
    step = training_step(lambda: model(batch["queries"], batch["context"], valid=batch["valid"]).pow(2).mean())
    return Scene(step, model, None, batch)


def inf_in_stale_float16_cache() -> Scene:
    """Text embeddings were cached in float16, where one overflowed; the run reads them in bfloat16."""
    torch.manual_seed(3)
    prompt = torch.randn(5, 8)
    prompt[4, 2] = 1e5
    batch = {"x": torch.randn(5, 8), "prompt": prompt.half()}

    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x: Tensor, *, prompt: Tensor) -> dict[str, Tensor]:
            return {"sample": self.norm(x + self.project(prompt.to(x.dtype)))}

    model = Conditioned().bfloat16()
    step = training_step(lambda: model(batch["x"].bfloat16(), prompt=batch["prompt"])["sample"].float().pow(2).mean())
    return Scene(step, model, None, batch)


def vae_overflow_float16() -> Scene:
    """A frozen encoder runs in float16 before the model; its activations pass 65504 for the brightest image."""
    torch.manual_seed(4)
    batch = {"images": torch.full((5, 3, 8, 8), 0.01)}
    batch["images"][3] = 1.0
    vae = nn.Conv2d(3, 4, 3, bias=False).half().requires_grad_(False)
    vae.weight.fill_(4000.0)
    model = nn.Conv2d(4, 4, 3, padding=1)
    optimizer = torch.optim.AdamW(model.parameters())

    def compute_loss() -> Tensor:
        with torch.no_grad():
            latents = vae(batch["images"].half())  # origin
        return model(0.13 * latents.float()).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def logit_of_time_zero() -> Scene:
    """Noise level as logit of a time drawn from the closed interval: the model is fed logit(0)."""
    torch.manual_seed(5)
    batch = {"x": torch.randn(5, 8), "t": torch.tensor([0.3, 0.0, 0.6, 0.2, 0.9])}
    model = nn.Linear(9, 8)

    def compute_loss() -> Tensor:
        level = torch.logit(batch["t"])  # origin
        return (model(torch.cat([batch["x"], level[:, None]], dim=1)) - batch["x"]).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def constant_image_standardised() -> Scene:
    """Each image is divided by its own deviation; one image is a single colour."""
    torch.manual_seed(6)
    batch = {"images": torch.rand(5, 3, 4, 4)}
    batch["images"][0] = 0.25
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))

    def compute_loss() -> Tensor:
        images = batch["images"]
        centred = images - images.mean((1, 2, 3), keepdim=True)
        scaled = centred / images.std((1, 2, 3), keepdim=True)  # origin
        return model(scaled).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def zero_size_crop() -> Scene:
    """Size conditioning divides by a crop of width zero; the sine of the infinity is NaN."""
    torch.manual_seed(7)
    batch = {
        "x": torch.randn(5, 8),
        "size": torch.full((5,), 1024.0),
        "crop": torch.tensor([512.0, 768.0, 0.0, 1024.0, 64.0]),
    }

    class SizeConditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.size = nn.Linear(8, 8), nn.Linear(2, 8)

        def forward(self, x: Tensor, zoom: Tensor) -> Tensor:
            return self.net(x) + self.size(torch.stack([zoom.sin(), zoom.cos()], dim=-1))

    model = SizeConditioned()

    def compute_loss() -> Tensor:
        zoom = batch["size"] / batch["crop"]  # origin
        return model(batch["x"], zoom).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def zero_sigma_input_scaling() -> Scene:
    """A denoiser's input is scaled by 1/sigma, and the schedule ends in sigma = 0."""
    torch.manual_seed(8)
    batch = {"noisy": torch.randn(5, 8).bfloat16(), "sigma": torch.tensor([9.0, 1.0, 0.5, 0.1, 0.0]).bfloat16()}
    model = nn.Linear(8, 8, dtype=torch.bfloat16)

    def compute_loss() -> Tensor:
        scaled = batch["noisy"] / batch["sigma"][:, None]  # origin
        return model(scaled).float().pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def nan_target() -> Scene:
    """A regression target is NaN; no forward operator of the model ever sees it."""
    torch.manual_seed(9)
    batch = {"x": torch.randn(5, 8), "target": torch.randn(5, 4)}
    batch["target"][3, 1] = torch.nan
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = training_step(lambda: F.smooth_l1_loss(model(batch["x"]), batch["target"]), optimizer)
    return Scene(step, model, optimizer, batch)


def infinite_depth_of_sky() -> Scene:
    """A renderer writes +inf as the depth of the sky; the loss is infinite while every gradient is finite."""
    torch.manual_seed(10)
    batch = {"images": torch.randn(5, 3, 4, 4), "depth": torch.rand(5, 1, 4, 4)}
    batch["depth"][1, 0, :2] = torch.inf
    model = nn.Conv2d(3, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = training_step(lambda: F.l1_loss(model(batch["images"]), batch["depth"]), optimizer)
    return Scene(step, model, optimizer, batch)


def _leaf(name: str, sample: int) -> Expected:
    return Expected("data", None, "bad_data", None, parameter=name, samples=(sample,))


def _made(exception: str, cause: str, sample: int, op: object = ...) -> Expected:
    return Expected("data", exception, cause, op, samples=(sample,), at_origin=True)


FAULTS: tuple[Fault, ...] = (
    Fault("nan_pixel", "synthetic", nan_pixel, _leaf("images", 2), ("float32",)),
    Fault(
        "nan_cached_latent",
        "huggingface/diffusers#7563",
        nan_cached_latent,
        _leaf("latents", 3),
        ("float32", "accumulation", "view"),
    ),
    Fault("nan_in_masked_padding", "ace-step/ACE-Step-1.5#619", nan_in_masked_padding, _leaf("context", 1), ("mask",)),
    Fault(
        "inf_in_stale_float16_cache",
        "kohya-ss/sd-scripts#1413",
        inf_in_stale_float16_cache,
        _leaf("prompt", 4),
        ("bfloat16", "inf_first", "dict"),
    ),
    Fault(
        "vae_overflow_float16",
        "kohya-ss/sd-scripts#952",
        vae_overflow_float16,
        _made("overflow", "overflow", 3),
        ("float16", "inf_first"),
    ),
    Fault(
        "logit_of_time_zero",
        "synthetic",
        logit_of_time_zero,
        _made("divide_by_zero", "out_of_domain", 1, "logit"),
        ("inf_first",),
    ),
    Fault(
        "constant_image_standardised",
        "NVIDIA/Megatron-LM#780",
        constant_image_standardised,
        _made("invalid", "out_of_domain", 0, "div"),
    ),
    Fault(
        "zero_size_crop",
        "synthetic",
        zero_size_crop,
        _made("divide_by_zero", "out_of_domain", 2, "div"),
        ("inf_first", "far"),
    ),
    Fault(
        "zero_sigma_input_scaling",
        "synthetic",
        zero_sigma_input_scaling,
        _made("divide_by_zero", "out_of_domain", 4, "div"),
        ("bfloat16", "inf_first"),
    ),
    Fault("nan_target", "synthetic", nan_target, _leaf("target", 3)),
    Fault("infinite_depth_of_sky", "synthetic", infinite_depth_of_sky, _leaf("depth", 1), ("inf_first",)),
)
