"""Loops without a library around them: what the optimizer holds, and what was to stay."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, AdamW

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import CLASSES, Net, endless, fit, loader, samples


def assigned_after_the_optimizer(watching: Watching) -> None:
    """A checkpoint is loaded with assign=True after the optimizer was made: its tensors replace the model's."""
    model = Net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    checkpoint = {name: value.clone() for name, value in Net().state_dict().items()}
    model.load_state_dict(checkpoint, assign=True)
    fit(watching, model, optimizer, loader(samples(192)))


def groups_of(net: nn.Module) -> list[dict[str, Any]]:
    """One group for the encoder and one for the head; the second is built, and not appended."""
    parameters: list[dict[str, Any]] = []
    params: dict[str, Any] = {"lr": 3e-3, "weight_decay": 1e-2, "params": []}
    for name, param in net.named_parameters():
        if name.startswith("encoder"):
            params["params"].append(param)
    parameters.append(params)
    params = {"lr": 5e-2, "weight_decay": 1e-2, "params": []}
    for name, param in net.named_parameters():
        if name.startswith("head"):
            params["params"].append(param)
    return parameters


def group_never_appended(watching: Watching) -> None:
    """The group of the head is filled, and never appended to the list that the optimizer gets."""
    net = Net()
    fit(watching, net, AdamW(groups_of(net)), loader(samples(192)))


class Tempered(Net):
    """Logits with a scale for each class."""

    def __init__(self) -> None:
        super().__init__()
        prior = np.log(np.full(CLASSES, 2.0))
        self.log_scale = nn.Parameter(torch.from_numpy(prior)).float()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.log_scale.exp()


def parameter_of_another_dtype(watching: Watching) -> None:
    """`nn.Parameter(...).float()` of a float64 array is a result and no parameter: the module never registers it."""
    model = Tempered()
    fit(watching, model, Adam(model.parameters(), lr=1e-2), loader(samples(192)))


class Lateral(nn.Module):
    """A layer whose width is known at the first forward pass alone, and which is made there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, CLASSES)
        self.lateral: nn.Linear | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if self.lateral is None:
            width = hidden.shape[-1]
            self.lateral = nn.Linear(width, width, bias=False)
        logits: Tensor = self.head(hidden + torch.relu(self.lateral(hidden)))
        return logits


def lateral_made_on_first_use(watching: Watching) -> None:
    """A layer that the first forward pass makes comes too late for the optimizer."""
    model = Lateral()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    watch = watching(model, opt)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = cross_entropy(model(batch["x"]), batch["y"])
                opt.zero_grad()
                loss.backward()
                opt.step()


class Contrast(nn.Module):
    """Similarity of two views of a sample, by a bilinear form between their codes."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.bilinear = nn.Parameter(torch.eye(16) + 0.1 * torch.randn(16, 16))

    def forward(self, anchor: Tensor, positive: Tensor) -> Tensor:
        return self.encoder(anchor) @ self.bilinear @ self.encoder(positive).T


def encoder_in_both_optimizers(watching: Watching) -> None:
    """The contrastive module's optimizer was to train its bilinear form; the encoder is in that module, too."""
    encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
    contrast, critic = Contrast(encoder), nn.Linear(16, CLASSES)
    encoder_optimizer = Adam(encoder.parameters(), lr=1e-3)
    cpc_optimizer = Adam(contrast.parameters(), lr=1e-3)
    critic_optimizer = Adam(critic.parameters(), lr=1e-3)
    optimizers = [encoder_optimizer, cpc_optimizer, critic_optimizer]
    watch = watching([contrast, critic], optimizers)
    for batch in endless(loader(samples(192)), 20):
        x, y = batch["x"], batch["y"]
        for attempt in watch.attempts(batch=batch):
            with attempt:
                for one in optimizers:
                    one.zero_grad()
                similarity = contrast(x, x + 0.1 * torch.randn_like(x))
                contrastive_loss = cross_entropy(similarity, torch.arange(len(x)))
                loss = cross_entropy(critic(encoder(x)), y) + contrastive_loss
                loss.backward()
                for one in optimizers:
                    one.step()


def attribute_of_a_module(watching: Watching) -> None:
    """`encoder.requires_grad = False` sets an attribute of the module, and freezes none of its parameters."""
    model = Net()
    model.encoder.requires_grad = False  # type: ignore[assignment]
    trainable = filter(lambda p: p.requires_grad, model.parameters())
    fit(watching, model, AdamW(trainable, lr=1e-2), endless(loader(samples(192)), 20))


class Average:
    """Exponential average of a model's weights, in bfloat16 to save memory."""

    def __init__(self, model: nn.Module, decay: float = 0.9995) -> None:
        self.decay = decay
        self.shadow = copy.deepcopy(model).to(torch.bfloat16).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for kept, current in zip(self.shadow.parameters(), model.parameters(), strict=True):
            kept.sub_((1 - self.decay) * (kept - current.to(kept.dtype)))


def average_in_bfloat16(watching: Watching) -> None:
    """The averaged weights are bfloat16: what a step adds to them is below half of their last digit."""
    model = Net()
    ema = Average(model)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    watch = watching([model, ema.shadow], optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad(set_to_none=True)
                loss = cross_entropy(model(batch["x"]), batch["y"])
                loss.backward()
                optimizer.step()
                ema.update(model)


_OUTSIDE = ("parameter-without-optimizer", "parameter-stands-still")

CASES = (
    Case(
        "assigned_after_the_optimizer",
        "pytorch/pytorch#121158",
        assigned_after_the_optimizer,
        Expected(0, ("optimizer-holds-stranger", *_OUTSIDE), ("encoder", "head")),
        tags=("optimizer",),
    ),
    Case(
        "group_never_appended",
        "zjunlp/HVPNeT#5",
        group_never_appended,
        Expected(0, _OUTSIDE, ("head",)),
        tags=("optimizer",),
    ),
    Case(
        "parameter_of_another_dtype",
        "pytorch/pytorch#20089",
        parameter_of_another_dtype,
        Expected(0, _OUTSIDE, ("log_scale",)),
        tags=("optimizer",),
    ),
    Case(
        "lateral_made_on_first_use",
        "iCog-Labs-Dev/PC-Transformers#135",
        lateral_made_on_first_use,
        Expected(0, _OUTSIDE, ("lateral",)),
        tags=("optimizer",),
    ),
    Case(
        "encoder_in_both_optimizers",
        "MishaLaskin/curl#20",
        encoder_in_both_optimizers,
        Expected(0, ("parameter-in-two-groups",), ("encoder",)),
        tags=("optimizer",),
    ),
    Case(
        "attribute_of_a_module",
        "CSCYQJ/MICCAI23-ProtoContra-SFDA#18",
        attribute_of_a_module,
        Expected(0, ("frozen-parameter-moves",), ("encoder",)),
        tags=("frozen",),
    ),
    Case(
        "average_in_bfloat16",
        "d8ahazard/sd_dreambooth_extension#1415",
        average_in_bfloat16,
        Expected(0, ("half-precision-weights", "parameter-stands-still"), ("1", "shadow", "encoder", "head")),
        tags=("precision", "ema"),
    ),
)
