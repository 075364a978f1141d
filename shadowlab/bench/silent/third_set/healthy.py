"""Healthy loops that look odd, without a library around them."""

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.nets import CLASSES, Net, Rows, classified, endless, fit, loader, samples


def zero_module(module: nn.Linear) -> nn.Linear:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Controlled(nn.Module):
    """A frozen network, and a copy of its first layer that sees a hint, and comes in by a layer of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 8)
        self.requires_grad_(False)
        self.control = copy.deepcopy(self.first).requires_grad_(True)
        self.hint, self.zero = nn.Linear(3, 8), zero_module(nn.Linear(32, 32))

    def forward(self, x: Tensor, hint: Tensor) -> Tensor:
        control = self.zero(F.silu(self.control(x + self.hint(hint))))
        out: Tensor = self.last(F.silu(self.first(x)) + control)
        return out


def layer_of_zeros(watching: Watching) -> None:
    """ControlNet: in the first step the hint has no influence, and all but the layer of zeros a gradient of zero."""
    model = Controlled()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    rows = samples(192).columns
    data = Rows(x=rows["x"], hint=rows["x"][:, 5:].flip(-1))

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        noise = torch.randn_like(batch["x"])
        return F.mse_loss(model(batch["x"] + noise, batch["hint"]), noise)

    fit(watching, model, optimizer, endless(loader(data), 20), compute_loss)


def pruned_along_the_way(watching: Watching) -> None:
    """Weights are pruned in the middle of training: each has a new name and a mask, and is the same parameter."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    layers = [(m, "weight") for m in model.modules() if isinstance(m, nn.Linear)]
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        if step in (8, 16):
            prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=0.3)
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def surgery_on_gradients(watching: Watching) -> None:
    """PCGrad: zero_grad() between two backwards, for each task's gradient is kept, and the step is along a mixture."""
    trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
    heads = nn.ModuleList([nn.Linear(32, CLASSES), nn.Linear(32, 2)])
    model = nn.ModuleDict({"trunk": trunk, "heads": heads})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    parameters = list(model.parameters())
    watch = watching(model, optimizer)

    def gradient_of(loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])

    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                features = trunk(batch["x"])
                losses = [F.cross_entropy(head(features), batch["y"] % head.out_features) for head in heads]
                first, second = (gradient_of(loss) for loss in losses)
                dot = first @ second
                if dot < 0:
                    first, second = (
                        first - dot / second.square().sum() * second,
                        second - dot / first.square().sum() * first,
                    )
                merged = (first + second).split([p.numel() for p in parameters])
                for parameter, gradient in zip(parameters, merged, strict=True):
                    parameter.grad = gradient.view_as(parameter).clone()
                optimizer.step()


def reptile(watching: Watching) -> None:
    """Reptile: a copy trains on a task, and the way that it went is the gradient; the model itself has no backward."""
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    meta_optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watch = watching(model, meta_optimizer)
    for _task in range(20):
        amplitude, phase = random.uniform(0.5, 2), random.uniform(0, 3)
        x = torch.rand(10, 1) * 4 - 2
        batch = {"x": x, "y": amplitude * torch.sin(x + phase)}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                fast = copy.deepcopy(model)
                inner = torch.optim.SGD(fast.parameters(), lr=0.02)
                for _ in range(3):
                    inner.zero_grad()
                    F.mse_loss(fast(batch["x"]), batch["y"]).backward()
                    inner.step()
                meta_optimizer.zero_grad()
                for slow, quick in zip(model.parameters(), fast.parameters(), strict=True):
                    slow.grad = slow.detach() - quick.detach()
                meta_optimizer.step()


class Convolutions(nn.Module):
    """Nodes (N, 8), and a normalised adjacency matrix (N, N) -> logits (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.dropout = nn.Linear(8, 16), nn.Linear(16, CLASSES), nn.Dropout(0.5)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(adjacency @ self.conv1(self.dropout(x))))
        logits: Tensor = adjacency @ self.conv2(hidden)
        return logits


def one_graph(watching: Watching) -> None:
    """A graph's nodes are classified: there is one graph, all of it is in each step, and few nodes have a label."""
    nodes = samples(60).columns
    same = nodes["y"][:, None] == nodes["y"]
    linked = torch.rand(60, 60, generator=torch.Generator().manual_seed(2)) < torch.where(same, 0.2, 0.02)
    adjacency = (linked | linked.T).float().fill_diagonal_(1)
    degree = adjacency.sum(1).rsqrt()
    data = {**nodes, "adjacency": degree[:, None] * adjacency * degree}
    data["train_mask"], data["val_mask"] = torch.arange(60) < 20, torch.arange(60) >= 40
    model = Convolutions()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
    watch = watching(model, optimizer)
    for _epoch in range(24):
        model.train()
        for attempt in watch.attempts(batch=data):
            with attempt:
                optimizer.zero_grad()
                out = model(data["x"], data["adjacency"])
                loss = F.cross_entropy(out[data["train_mask"]], data["y"][data["train_mask"]])
                loss.backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            found = model(data["x"], data["adjacency"]).argmax(-1)
            assert 0 <= float((found == data["y"])[data["val_mask"]].float().mean()) <= 1


def penalty_on_the_slope(watching: Watching) -> None:
    """WGAN-GP: two critic steps for one of the generator, each zeroed, and autograd.grad() with a graph of its own."""
    generator = nn.Linear(4, 8)
    critic = nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 1))
    g_opt, c_opt = (torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.9)) for net in (generator, critic))
    watch = watching([generator, critic], [g_opt, c_opt])
    for batch in endless(loader(samples(192)), 20):
        real = batch["x"]
        for attempt in watch.attempts(batch=batch):
            with attempt:
                for _ in range(2):
                    fake = generator(torch.randn(len(real), 4)).detach()
                    between = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_(True)
                    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
                    gradient_penalty = (slope.norm(dim=1) - 1).square().mean()
                    c_loss = critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty
                    c_opt.zero_grad()
                    c_loss.backward()
                    c_opt.step()
                g_loss = -critic(generator(torch.randn(len(real), 4))).mean()
                g_opt.zero_grad()
                g_loss.backward()
                g_opt.step()


CASES = (
    Case("layer_of_zeros", "https://arxiv.org/abs/2302.05543", layer_of_zeros),
    Case(
        "pruned_along_the_way",
        "https://pytorch.org/tutorials/intermediate/pruning_tutorial.html",
        pruned_along_the_way,
    ),
    Case("surgery_on_gradients", "https://arxiv.org/abs/2001.06782", surgery_on_gradients),
    Case("reptile", "https://arxiv.org/abs/1803.02999", reptile),
    Case("one_graph", "https://arxiv.org/abs/1609.02907", one_graph),
    Case("penalty_on_the_slope", "https://arxiv.org/abs/1704.00028", penalty_on_the_slope),
)
