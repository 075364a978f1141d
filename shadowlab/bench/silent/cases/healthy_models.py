"""Healthy loops that look odd: models of which a part has no gradient, and models that are never trained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.nets import (
    CLASSES,
    Denoiser,
    Net,
    Seer,
    classified,
    endless,
    fit,
    loader,
    pictures,
    samples,
)


class Adapted(nn.Module):
    """LoRA as it begins: the second factor is zero, so the first has a gradient of zero in the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, CLASSES).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(8, 2, bias=False), nn.Linear(2, CLASSES, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x) + self.lora_b(self.lora_a(x))
        return logits


def low_rank_from_zero(watching: Watching) -> None:
    """LoRA whose second factor begins at zero: the first has a gradient of exactly zero for one step."""
    model = Adapted()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fit(watching, model, torch.optim.AdamW(trainable, lr=1e-2), endless(loader(samples(192)), 24))


class Experts(nn.Module):
    """A router sends the whole batch to one of four experts: the others have no gradient in this step."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList([nn.Linear(8, CLASSES) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1).mean(0)
        chosen = int(torch.multinomial(share.detach(), 1))
        logits: Tensor = self.experts[chosen](x) * share[chosen] * 4
        return logits


def experts_in_turn(watching: Watching) -> None:
    """A mixture whose router picks one expert a batch: the others have no gradient."""
    model = Experts()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-2), endless(loader(samples(192)), 24))


class Dropped(Net):
    """Stochastic depth: a block is left out now and then."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder[1](self.encoder[0](x))
        if not self.training or torch.rand(()) > 0.5:
            hidden = hidden + self.encoder[4](self.encoder[3](hidden))
        logits: Tensor = self.head(hidden)
        return logits


def layers_left_out(watching: Watching) -> None:
    """Stochastic depth: a block that is left out now and then has no gradient then."""
    model = Dropped()
    fit(watching, model, torch.optim.SGD(model.parameters(), lr=0.05), endless(loader(samples(192)), 24))


def unfrozen_with_a_group(watching: Watching) -> None:
    """Gradual unfreezing as it is done right: add_param_group when the encoder wakes up."""
    model = Net()
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        if step == 3:
            model.encoder.requires_grad_(True)
            optimizer.add_param_group({"params": list(model.encoder.parameters()), "lr": 1e-3})
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def averaged_by_torch(watching: Watching) -> None:
    """SWA: averaged model, its own schedule, and batch norm that is brought up to date at the end."""
    from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

    model = Seer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    swa_model: Any = AveragedModel(model)
    swa_scheduler = SWALR(optimizer, swa_lr=0.01, anneal_epochs=2)
    data = loader(pictures(160))
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(data, 8)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
        if step >= 4 and step % 2 == 1:
            swa_model.update_parameters(model)
            swa_scheduler.step()
    update_bn((batch["picture"] for batch in data), swa_model)


def checkpointed(watching: Watching) -> None:
    """Activation checkpointing: the encoder runs a second time inside backward."""

    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(checkpoint(self.encoder, x, use_reentrant=False))
            return logits

    model = Checkpointed(dropout=0.2)
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-2), endless(loader(samples(192)), 24))


def distilled(watching: Watching) -> None:
    """A frozen teacher in evaluation mode under no_grad, next to the student that is trained."""
    teacher, student = Net(dropout=0.3).eval().requires_grad_(False), Net()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    watch = watching([student, teacher], optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                with torch.no_grad():
                    wanted = teacher(batch["x"]).softmax(-1)
                logits = student(batch["x"])
                loss = F.kl_div(logits.log_softmax(-1), wanted, reduction="batchmean") + classified(student, batch)
                loss.backward()
                optimizer.step()


def momentum_encoder(watching: Watching) -> None:
    """MoCo: the key encoder trails the query encoder, and every label is 0, for the positive comes first."""
    query, key = nn.Linear(8, 6), nn.Linear(8, 6)
    key.load_state_dict(query.state_dict())
    key.requires_grad_(False)
    queue = F.normalize(torch.randn(16, 6))
    optimizer = torch.optim.SGD(query.parameters(), lr=0.05, momentum=0.9)
    watch = watching(query, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                with torch.no_grad():
                    for trailing, leading in zip(key.parameters(), query.parameters(), strict=True):
                        trailing.lerp_(leading, 0.01)
                    keys = F.normalize(key(batch["x"] + 0.1))
                queries = F.normalize(query(batch["x"]))
                logits = torch.cat([(queries * keys).sum(-1, keepdim=True), queries @ queue.T], 1)
                labels = torch.zeros(len(logits), dtype=torch.long)
                loss = F.cross_entropy(logits / 0.1, labels)
                loss.backward()
                optimizer.step()


def guidance_dropout(watching: Watching) -> None:
    """Flow matching whose condition is dropped, now and then for a whole batch."""
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = watching(model, optimizer)
    for step, row in enumerate(endless(loader(samples(192)), 24)):
        light = torch.zeros(len(row["x"]), 3) if step == 4 else torch.randn(len(row["x"]), 3)
        batch = {"x": row["x"], "light": light}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                t, noise = torch.rand(len(light)), torch.randn_like(batch["x"])
                x_t = (1 - t)[:, None] * batch["x"] + t[:, None] * noise
                loss = F.mse_loss(model(x_t, t, light), noise - batch["x"])
                loss.backward()
                optimizer.step()


CASES = (
    Case("low_rank_from_zero", "https://arxiv.org/abs/2106.09685", low_rank_from_zero),
    Case("experts_in_turn", "https://arxiv.org/abs/2101.03961", experts_in_turn),
    Case("layers_left_out", "https://arxiv.org/abs/1603.09382", layers_left_out),
    Case("unfrozen_with_a_group", "https://arxiv.org/abs/1801.06146", unfrozen_with_a_group),
    Case("averaged_by_torch", "https://pytorch.org/docs/stable/optim.html#swa", averaged_by_torch),
    Case("checkpointed", "https://pytorch.org/docs/stable/checkpoint.html", checkpointed),
    Case("distilled", "https://arxiv.org/abs/1503.02531", distilled),
    Case("momentum_encoder", "dddzg/MoCo#2", momentum_encoder),
    Case("guidance_dropout", "https://arxiv.org/abs/2207.12598", guidance_dropout),
)
