"""Micro-batches that are steps of their own: gradients were there before the step, and the last one updates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene


def _micro_steps(
    compute_loss: Callable[[dict[str, Any]], Tensor], batches: list[dict[str, Any]], optimizer: Any, every: int
) -> list[Callable[[], Tensor]]:
    """One callable a micro-batch; every so many update and let go of the gradients."""

    def micro_step(i: int) -> Tensor:
        loss = compute_loss(batches[i]) / every
        loss.backward()
        if (i + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return [partial(micro_step, i) for i in range(len(batches))]


def third_of_four_micro_batches() -> Scene:
    """nanoGPT's loop, a micro-batch at a time; the third has a document of padding alone, whose mean is 0/0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95))
    batches: list[dict[str, Any]] = [
        {"idx": torch.randint(11, (3, 6)), "mask": torch.ones(3, 6), "shard": ["a", "b", "c"]} for _ in range(3)
    ]
    batches[2]["mask"][1] = 0

    def compute_loss(batch: dict[str, Any]) -> Tensor:
        logits = model(batch["idx"][:, :-1])
        losses = F.cross_entropy(logits.transpose(1, 2), batch["idx"][:, 1:], reduction="none")
        kept = batch["mask"][:, 1:]
        a_document = (losses * kept).sum(1) / kept.sum(1)  # origin
        return a_document.mean()

    *before, step = _micro_steps(compute_loss, batches, optimizer, every=4)
    return Scene(step, model, optimizer, batches[2], before=before)


def accumulated_sum_overflow() -> Scene:
    """float16 gradients of two micro-batches are within 65504 each; their sum is not, and no value of the step is."""
    torch.manual_seed(1)
    model = nn.Linear(8, 4, bias=False).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batches = [{"x": torch.full((4, 8), 1e4)} for _ in range(2)]

    def compute_loss(batch: dict[str, Any]) -> Tensor:
        return 4 * model(batch["x"].half()).float().sum()

    *before, step = _micro_steps(compute_loss, batches, optimizer, every=4)
    return Scene(step, model, optimizer, batches[1], before=before)


def update_at_the_boundary() -> Scene:
    """The fourth micro-batch steps AdamW, whose eps is zero in float16: the replay must step it, too."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).half()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    batches = [{"x": torch.randn(4, 8)} for _ in range(4)]

    def compute_loss(batch: dict[str, Any]) -> Tensor:
        return 1e-4 * model(batch["x"].half()).float().mean()

    *before, step = _micro_steps(compute_loss, batches, optimizer, every=4)
    return Scene(step, model, optimizer, batches[3], before=before)


def _accelerated(model: nn.Module, lr: float, steps: int) -> tuple[Accelerator, nn.Module, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(gradient_accumulation_steps=steps, cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model, optimizer = accelerator.prepare(model, optimizer)
    return accelerator, model, optimizer


def second_micro_batch_of_accelerate() -> Scene:
    """diffusers' train_text_to_image under `accelerator.accumulate`: min-SNR weights of a zero-terminal schedule."""
    torch.manual_seed(3)
    accelerator, unet, optimizer = _accelerated(nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)), 1e-4, 2)
    alphas = torch.linspace(1, 0, 10)
    batches = [{"pixel_values": torch.randn(4, 8), "timesteps": torch.tensor([3, 8, 5, 1])} for _ in range(2)]
    batches[1]["timesteps"] = torch.tensor([3, 9, 5, 1])

    def micro_step(batch: dict[str, Tensor]) -> Tensor:
        with accelerator.accumulate(unet):
            noise, t = torch.randn_like(batch["pixel_values"]), batch["timesteps"]
            alpha = alphas[t][:, None]
            prediction = unet(alpha.sqrt() * batch["pixel_values"] + (1 - alpha).sqrt() * noise)
            snr = alphas[t] / (1 - alphas[t])
            weights = torch.stack([snr, 5 * torch.ones_like(t)], 1).min(1)[0] / snr  # origin
            loss = (F.mse_loss(prediction, noise, reduction="none").mean(1) * weights).mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    before, step = (partial(micro_step, batch) for batch in batches)
    return Scene(step, unet, optimizer, batches[1], (before,), watch={"accelerator": accelerator})


def accelerate_updates_at_its_boundary() -> Scene:
    """The same loop on float16 weights: the update of the second micro-batch divides by an eps that is zero."""
    torch.manual_seed(4)
    accelerator, unet, optimizer = _accelerated(nn.Linear(8, 8).half(), 1e-5, 2)
    batches = [{"latents": torch.randn(4, 8)} for _ in range(2)]

    def micro_step(batch: dict[str, Tensor]) -> Tensor:
        with accelerator.accumulate(unet):
            loss = 1e-4 * unet(batch["latents"].half()).float().pow(2).mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    before, step = (partial(micro_step, batch) for batch in batches)
    return Scene(step, unet, optimizer, batches[1], (before,), watch={"accelerator": accelerator})


def _lightning_step(fails: bool) -> Scene:
    """Manual optimization as in LBM's and Light-Diffusion's modules: a counter decides when to update."""
    torch.manual_seed(5)

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser, self.num_batches = nn.Linear(8, 8), 0

        def forward(self, x: Tensor) -> Tensor:
            return self.denoiser(x)

    module = Module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    batches = [{"latents": torch.randn(4, 8), "sigma": torch.rand(4, 1) + 0.1} for _ in range(4)]
    if fails:
        batches[3]["sigma"][2] = 0.0

    def training_step(batch: dict[str, Tensor]) -> Tensor:
        noisy = batch["latents"] + batch["sigma"] * torch.randn_like(batch["latents"])
        denoised = module(noisy)
        loss = (((denoised - batch["latents"]) / batch["sigma"]) ** 2).mean() / 2
        loss.backward()
        module.num_batches += 1
        if module.num_batches % 2 == 0:
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    *before, step = [partial(training_step, batch) for batch in batches]
    return Scene(step, module, optimizer, batches[3], before)


def healthy_accumulation() -> Scene:
    """Benign: two updates of two micro-batches each, counted in the module, and noise drawn in each."""
    return _lightning_step(fails=False)


def healthy_accelerate() -> Scene:
    """Benign: accelerate's accumulation over five micro-batches with an update after every second."""
    torch.manual_seed(6)
    accelerator, unet, optimizer = _accelerated(nn.Linear(8, 8), 1e-3, 2)
    batches = [torch.randn(4, 8) for _ in range(5)]

    def micro_step(latents: Tensor) -> Tensor:
        with accelerator.accumulate(unet):
            loss = F.mse_loss(unet(latents + torch.randn_like(latents)), latents)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    *before, step = [partial(micro_step, latents) for latents in batches]
    return Scene(step, unet, optimizer, {"latents": batches[-1]}, before, watch={"accelerator": accelerator})


FAULTS: tuple[Fault, ...] = (
    Fault(
        "third_of_four_micro_batches",
        "espnet/espnet#3283",
        third_of_four_micro_batches,
        Expected(
            "loss", "invalid", "empty_reduction", "div", samples=(1,), sample_ids=("b",), says=("kept",), at_origin=True
        ),
        ("accumulation", "mask"),
    ),
    Fault(
        "accumulated_sum_overflow",
        "deepspeedai/DeepSpeed#8035",
        accumulated_sum_overflow,
        Expected("backward", "overflow", "overflow", parameter="weight"),
        ("accumulation", "float16", "inf_first"),
    ),
    Fault(
        "update_at_the_boundary",
        "pytorch/pytorch#147437",
        update_at_the_boundary,
        Expected("optimizer", ..., "underflow", parameter="0.weight", says=("eps",)),
        ("accumulation", "float16", "foreach", "inf_first"),
    ),
    Fault(
        "second_micro_batch_of_accelerate",
        "huggingface/diffusers#5238",
        second_micro_batch_of_accelerate,
        Expected("loss", "invalid", "out_of_domain", "div", samples=(1,), at_origin=True),
        ("accumulation", "accelerate"),
    ),
    Fault(
        "accelerate_updates_at_its_boundary",
        "huggingface/diffusers#6442",
        accelerate_updates_at_its_boundary,
        Expected("optimizer", ..., "underflow", parameter="weight", says=("eps",)),
        ("accumulation", "accelerate", "float16"),
    ),
    Fault(
        "optimizer_of_a_manual_loop",
        "modelscope/DiffSynth-Studio#1293",
        lambda: _lightning_step(fails=True),
        Expected("loss", ..., "out_of_domain", "div", samples=(2,)),
        ("accumulation",),
    ),
    Fault("healthy_accumulation", "espnet/espnet#3283", healthy_accumulation, None, ("accumulation",)),
    Fault("healthy_accelerate", "karpathy/nanoGPT#605", healthy_accelerate, None, ("accumulation", "accelerate")),
)
