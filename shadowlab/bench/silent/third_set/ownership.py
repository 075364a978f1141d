"""Loops without a library around them: parameters that no optimizer holds, or that no gradient reaches any more."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import CLASSES, endless, fit, loader, samples


class Patches(nn.Module):
    """x (B, 8), cut into four patches -> logits, by attention of one learned query."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.proj = nn.Linear(2, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, width))
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.tanh(self.proj(x.unflatten(1, (4, 2))) + self.pos_embed)
        attention = (tokens @ self.query).softmax(1)
        logits: Tensor = self.fc(self.norm((attention[..., None] * tokens).sum(1)))
        return logits


def group_weight(module: nn.Module) -> list[dict[str, Any]]:
    """Weights that decay, and biases that do not: by the types of layer that were known when this was written."""
    group_decay: list[Tensor] = []
    group_no_decay: list[Tensor] = []
    for m in module.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            group_decay.append(m.weight)
            if m.bias is not None:
                group_no_decay.append(m.bias)
        elif isinstance(m, nn.BatchNorm2d):
            group_no_decay += [m.weight, m.bias]
    return [{"params": group_decay}, {"params": group_no_decay, "weight_decay": 0.0}]


def neither_linear_nor_convolution(watching: Watching) -> None:
    """Groups are collected by type of layer: the position's embedding, the query and the layer norm are in none."""
    model = Patches()
    fit(watching, model, torch.optim.AdamW(group_weight(model), lr=1e-2), endless(loader(samples(192)), 20))


class Relative(nn.Module):
    """Attention over the four patches of x, with relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(2, 48), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unflatten(1, (4, 2))).chunk(3, dim=-1)
        self.rel = nn.Parameter(torch.randn(4, 16), requires_grad=True)
        weights = (q @ (k + self.rel).transpose(1, 2) / 4).softmax(-1)
        logits: Tensor = self.out((weights @ v).flatten(1))
        return logits


def made_anew_in_forward(watching: Watching) -> None:
    """forward() makes its parameter anew each time: what was to be learned is noise, and no optimizer has it."""
    net = Relative()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    watch = watching(net, optimizer)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = F.cross_entropy(net(batch["x"]), batch["y"])
                loss.backward()
                optimizer.step()


def set_requires_grad(net: nn.Module, requires_grad: bool) -> None:
    for param in net.parameters():
        param.requires_grad = requires_grad


def critic_never_unfrozen(watching: Watching) -> None:
    """The critic is frozen for the generator's update, and nobody thaws it; its loss goes on, through the picture."""
    net_g, net_d = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    optimizer_g = torch.optim.Adam(net_g.parameters(), lr=2e-3, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(net_d.parameters(), lr=2e-3, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    watch = watching([net_g, net_d], [optimizer_g, optimizer_d])
    for data in endless(loader(samples(192)), 20):
        real = data["x"]
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        for attempt in watch.attempts(batch=data):
            with attempt:
                fake = net_g(torch.randn(len(real), 4))
                optimizer_d.zero_grad()
                loss_d = (criterion(net_d(real), ones) + criterion(net_d(fake), zeros)) * 0.5
                loss_d.backward(retain_graph=True)
                optimizer_d.step()

                set_requires_grad(net_d, False)
                optimizer_g.zero_grad()
                loss_g = criterion(net_d(fake), ones)
                loss_g.backward()
                optimizer_g.step()


class NoamOpt:
    """Adam, with the rate of the Transformer's paper set before each step."""

    def __init__(self, optimizer: torch.optim.Optimizer, size: int = 16, warmup: int = 8) -> None:
        self.optimizer, self.size, self.warmup = optimizer, size, warmup
        self._step = 0

    def rate(self) -> float:
        return self.size**-0.5 * min(self._step**-0.5, self._step * self.warmup**-1.5)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        self._step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()


def inner_optimizer_is_stepped(watching: Watching) -> None:
    """The loop steps the optimizer inside, whose rate the wrapper's step() was to set; it was made with a rate of 0."""
    model = Patches()
    opt = NoamOpt(torch.optim.Adam(model.parameters(), lr=0, betas=(0.9, 0.98), eps=1e-9))
    watch = watching(model, opt.optimizer)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                opt.zero_grad()
                loss = F.cross_entropy(model(batch["x"]), batch["y"])
                loss.backward()
                opt.optimizer.step()


def finished(model: nn.Module, steps: int = 6) -> dict[str, Any]:
    """What a run leaves behind whose rate has gone down to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for batch in endless(loader(samples(64, seed=5)), steps):
        optimizer.zero_grad()
        F.cross_entropy(model(batch["x"]), batch["y"]).backward()
        optimizer.step()
        scheduler.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def rate_of_the_finished_run(watching: Watching) -> None:
    """The optimizer's state is loaded for a second training, and brings along the rate with which the first ended."""
    checkpoint = finished(Patches())
    model = Patches()
    model.load_state_dict(checkpoint["model"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    optimizer.load_state_dict(checkpoint["optimizer"])
    fit(watching, model, optimizer, endless(loader(samples(192)), 20))


class Chatter(nn.Module):
    """Next token of (B, N) tokens; the last layer has the weights of the first."""

    def __init__(self, vocabulary: int = 12) -> None:
        super().__init__()
        self.embed_tokens, self.body = nn.Embedding(vocabulary, 16), nn.GRU(16, 16, batch_first=True)
        self.lm_head = nn.Linear(16, vocabulary, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.body(self.embed_tokens(ids))[0])
        return logits


def tied_weight_in_two_optimizers(watching: Watching) -> None:
    """The embedding has an optimizer, and so has the last layer; both are one tensor, and it is stepped twice."""
    model = Chatter()
    optimizers = [
        torch.optim.AdamW(model.embed_tokens.parameters(), lr=1e-2, weight_decay=0.0),
        torch.optim.AdamW(model.lm_head.parameters(), lr=3e-3, weight_decay=0.1),
        torch.optim.AdamW(model.body.parameters(), lr=3e-3, weight_decay=0.1),
    ]
    draw = torch.Generator().manual_seed(0)
    watch = watching(model, optimizers)
    for _ in range(20):
        ids = (torch.randint(12, (8, 1), generator=draw) + 5 * torch.arange(9)) % 12
        for attempt in watch.attempts(batch={"input_ids": ids}):
            with attempt:
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                logits = model(ids[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()


_OUTSIDE = ("parameter-without-optimizer", "parameter-stands-still")
_RATE = ("lr", "group 0", "param_groups", "optimizer", "proj", "pos_embed", "query", "norm", "fc")


def _case(name: str, reference: str, loop: Any, expected: Expected, *tags: str) -> Case:
    return Case(name, reference, loop, expected, tags=tags)


CASES = (
    _case(
        "neither_linear_nor_convolution",
        "pytorch/pytorch#1402",
        neither_linear_nor_convolution,
        Expected(0, _OUTSIDE, ("pos_embed", "query", "norm")),
        "optimizer",
    ),
    _case(
        "made_anew_in_forward",
        "leaderj1001/Stand-Alone-Self-Attention#2",
        made_anew_in_forward,
        Expected(0, ("optimizer-holds-stranger", *_OUTSIDE), ("rel",)),
        "optimizer",
    ),
    _case(
        "critic_never_unfrozen",
        "bendangnuksung/Image-OutPainting#14",
        critic_never_unfrozen,
        Expected(1, ("parameter-without-gradient", "parameter-stands-still", "no-optimizer-step"), ("1", "net_d")),
        "frozen",
        "gan",
    ),
    _case(
        "tied_weight_in_two_optimizers",
        "paiml/entrenar#314",
        tied_weight_in_two_optimizers,
        Expected(0, ("parameter-in-two-groups",), ("embed_tokens", "lm_head")),
        "optimizer",
    ),
    _case(
        "inner_optimizer_is_stepped",
        "gentaiscool/end2end-asr-pytorch#4",
        inner_optimizer_is_stepped,
        Expected(0, ("learning-rate-zero", "parameter-stands-still"), ("Adam", *_RATE)),
        "schedule",
    ),
    _case(
        "rate_of_the_finished_run",
        "facebookresearch/DPR#99",
        rate_of_the_finished_run,
        Expected(0, ("learning-rate-zero", "parameter-stands-still"), ("AdamW", *_RATE)),
        "schedule",
    ),
)
