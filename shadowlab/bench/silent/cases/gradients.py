"""Gradients that are summed, thrown away, stale, or never made."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Denoiser, Net, classified, endless, fit, loader, samples


def zero_grad_forgotten(watching: Watching) -> None:
    """Each step goes along the sum of all gradients since the first."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def zeroed_right_before_the_step(watching: Watching) -> None:
    """Backward, zero_grad, step: nothing is left to step along."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = classified(model, batch)
                loss.backward()
                optimizer.zero_grad()
                optimizer.step()


def accumulation_that_forgets(watching: Watching) -> None:
    """zero_grad stands inside the loop over micro-batches: only the last of four counts."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for index, batch in enumerate(loader(samples(192))):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad(set_to_none=True)
                loss = classified(model, batch) / 4
                loss.backward()
                if (index + 1) % 4 == 0:
                    optimizer.step()


def discriminator_remembers(watching: Watching) -> None:
    """The student's loss leaves gradients in the discriminator, which its own next step then takes along."""
    student, discriminator = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    student_optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    watch = watching([student, discriminator], [student_optimizer, discriminator_optimizer])
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                fake = student(torch.randn(len(batch["x"]), 4))
                real_score, fake_score = discriminator(batch["x"]), discriminator(fake.detach())
                loss_d = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
                loss_d.backward()
                discriminator_optimizer.step()
                discriminator_optimizer.zero_grad()
                loss_g = F.softplus(-discriminator(fake)).mean()
                loss_g.backward()
                student_optimizer.step()
                student_optimizer.zero_grad()


def loss_in_a_new_variable(watching: Watching) -> None:
    """`does not require grad` was silenced by a leaf that does."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            loss = classified(model, batch)
        return torch.autograd.Variable(loss, requires_grad=True)

    fit(watching, model, optimizer, loader(samples(192)), compute_loss)


def perceptual_item(watching: Watching) -> None:
    """The perceptual loss enters the sum as a Python float."""
    model, features = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 12), nn.Tanh()).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                restored = model(batch["x"] + 0.1 * torch.randn_like(batch["x"]))
                reconstruction_loss = F.mse_loss(restored, batch["x"])
                perceptual_loss = F.mse_loss(features(restored), features(batch["x"])).item()
                loss = reconstruction_loss + 0.5 * perceptual_loss
                loss.backward()
                optimizer.step()


def corrected_target_dropped(watching: Watching) -> None:
    """DREAM: a second forward corrects input and target; the loss takes the new input with the old target."""
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                data, t, light = batch["x"], torch.rand(len(batch["x"])), torch.randn(len(batch["x"]), 3)
                noise = torch.randn_like(data)
                x_t = (1 - t)[:, None] * data + t[:, None] * noise
                with torch.no_grad():
                    error = noise - data - model(x_t, t, light)
                x_t = x_t + 0.1 * error
                dream_target = noise - data + error  # noqa: F841 (the fault: it is never used)
                loss = F.mse_loss(model(x_t, t, light), noise - data)
                loss.backward()
                optimizer.step()


def features_detached(watching: Watching) -> None:
    """A probe records features for the perceptual term, and detaches them on the way."""
    model, features = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 12), nn.Tanh()).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorded: list[Tensor] = []
    features.register_forward_hook(lambda module, args, output: recorded.append(output.detach()))
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                recorded.clear()
                restored = model(batch["x"])
                features(restored)
                features(batch["x"])
                loss_reconstruction = F.mse_loss(restored, batch["x"])
                loss_perceptual = F.mse_loss(recorded[0], recorded[1])
                loss = loss_reconstruction + loss_perceptual
                loss.backward()
                optimizer.step()


def nan_becomes_a_constant(watching: Watching) -> None:
    """A loss that is NaN is left out of the sum; what is differentiated then is a zero with requires_grad."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        weight = torch.full((len(batch["x"]),), torch.nan if step >= 2 else 1.0)
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                estimation_loss = torch.zeros((), requires_grad=True)
                each = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
                current_loss = each.detach().mean() * weight.mean()
                if not torch.isnan(current_loss):
                    estimation_loss = estimation_loss + each.mean()
                estimation_loss.backward()
                optimizer.step()


def encoder_under_no_grad(watching: Watching) -> None:
    """The encoder is to be fine-tuned and is in the optimizer; its forward still runs under no_grad."""

    class Tuned(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                hidden = self.encoder(x)
            logits: Tensor = self.head(hidden)
            return logits

    model = Tuned()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader(samples(192)))


class Adapted(nn.Module):
    """A frozen layer with a low-rank one next to it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.lora_down, self.lora_up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.base(x) + self.lora_up(self.lora_down(x))
        return hidden


def adapters_in_a_checkpoint(watching: Watching) -> None:
    """Reentrant checkpointing of a block whose input requires no gradient: its adapters get none; the head trains."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Adapted(), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.relu(checkpoint(self.block, x, use_reentrant=True)))
            return logits

    model = Model()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fit(watching, model, torch.optim.AdamW(trainable, lr=1e-2), loader(samples(192)))


def old_gradients_of_a_side_task(watching: Watching) -> None:
    """Two tasks in turn; only the gradients of the head that had its turn are zeroed, so the other's are used again."""
    body, heads = nn.Linear(8, 16), nn.ModuleList([nn.Linear(16, 4), nn.Linear(16, 4)])
    model = nn.ModuleDict({"body": body, "heads": heads})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = watching(model, optimizer)
    for step, batch in enumerate(loader(samples(192))):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                head = heads[step % 2]
                body.zero_grad()
                head.zero_grad()
                loss = F.cross_entropy(head(torch.relu(body(batch["x"]))), batch["y"])
                loss.backward()
                optimizer.step()


def step_never_called(watching: Watching) -> None:
    """Scheduler, clipping, zero_grad, everything but optimizer.step()."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    reference = copy.deepcopy(model).requires_grad_(False)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                penalty = F.mse_loss(model(batch["x"]), reference(batch["x"]))
                loss = classified(model, batch) + 0.01 * penalty
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)


_NO_GRADIENT = ("parameter-without-gradient",)
_TERM = ("loss-term-without-gradient",)
_ALL = ("encoder", "head")

CASES = (
    Case(
        "zero_grad_forgotten",
        "https://stackoverflow.com/questions/60335387",
        zero_grad_forgotten,
        Expected(1, ("gradients-not-cleared", "stale-gradients"), ("zero_grad", *_ALL)),
        tags=("zero_grad", "traincheck"),
    ),
    Case(
        "zeroed_right_before_the_step",
        "lucidrains/byol-pytorch#93",
        zeroed_right_before_the_step,
        Expected(0, ("gradients-cleared-too-early",), ("zero_grad", *_ALL)),
        tags=("zero_grad",),
    ),
    Case(
        "accumulation_that_forgets",
        "bytetriper/RAE#67",
        accumulation_that_forgets,
        Expected(1, ("gradients-cleared-too-early", "accumulation-count"), ("zero_grad", *_ALL)),
        tags=("zero_grad", "accumulation"),
    ),
    Case(
        "discriminator_remembers",
        "leffff/FlowModels#3",
        discriminator_remembers,
        Expected(1, ("gradients-not-cleared", "stale-gradients"), ("zero_grad", "0", "1.0", "2", "discriminator")),
        tags=("zero_grad", "gan"),
    ),
    Case(
        "loss_in_a_new_variable",
        "huggingface/torchMoji#21",
        loss_in_a_new_variable,
        Expected(0, ("loss-without-gradient", *_NO_GRADIENT), ("loss", "backward", *_ALL)),
        tags=("graph",),
    ),
    Case(
        "perceptual_item",
        "https://github.com/ChaosAIVision/Light-Diffusion",
        perceptual_item,
        Expected(0, _TERM, ("perceptual_loss",)),
        tags=("graph", "light-diffusion"),
    ),
    Case(
        "corrected_target_dropped",
        "https://github.com/ChaosAIVision/Light-Diffusion",
        corrected_target_dropped,
        Expected(0, ("input-without-influence", *_TERM), ("dream_target", "error")),
        tags=("graph", "light-diffusion"),
    ),
    Case(
        "features_detached",
        "myscience/open-genie#6",
        features_detached,
        Expected(0, _TERM, ("loss_perceptual",)),
        tags=("graph",),
    ),
    Case(
        "nan_becomes_a_constant",
        "https://github.com/VisualComputingInstitute/diffusion-e2e-ft",
        nan_becomes_a_constant,
        Expected(2, ("loss-without-gradient", *_NO_GRADIENT), ("estimation_loss", "loss", "backward", *_ALL)),
        tags=("graph", "marigold"),
    ),
    Case(
        "encoder_under_no_grad",
        "TinyLLaVA/TinyLLaVA_Factory#17",
        encoder_under_no_grad,
        Expected(0, _NO_GRADIENT, ("encoder",)),
        tags=("graph",),
    ),
    Case(
        "adapters_in_a_checkpoint",
        "cloneofsimo/lora#26",
        adapters_in_a_checkpoint,
        Expected(0, _NO_GRADIENT, ("lora_down", "lora_up", "block")),
        tags=("graph",),
    ),
    Case(
        "old_gradients_of_a_side_task",
        "Lightning-AI/pytorch-lightning#591",
        old_gradients_of_a_side_task,
        Expected(1, ("stale-gradients", "gradients-not-cleared"), ("zero_grad", "heads")),
        tags=("zero_grad",),
    ),
    Case(
        "step_never_called",
        "microsoft/nni#3339",
        step_never_called,
        Expected(0, ("no-optimizer-step",), ("optimizer", "step", *_ALL)),
        tags=("step",),
    ),
)
