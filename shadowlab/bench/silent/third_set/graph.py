"""Loops without a library around them: numbers where there should be a graph, and gradients that are zero."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import CLASSES, Rows, endless, fit, loader, samples


class Contrastive(nn.Module):
    """Similarities of samples and of the names of classes, in the manner of CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16))
        self.text = nn.Embedding(CLASSES, 16)
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, float]:
        image_features = F.normalize(self.visual(image), dim=-1)
        text_features = F.normalize(self.text(text), dim=-1)
        return image_features, text_features, self.logit_scale.exp().item()


def temperature_as_a_number(watching: Watching) -> None:
    """The learned temperature leaves the model by .item(): it stays what it was in the beginning."""
    model = Contrastive()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        image_features, text_features, scale = model(batch["x"], torch.arange(CLASSES))
        return F.cross_entropy(scale * image_features @ text_features.T, batch["y"])

    fit(watching, model, optimizer, endless(loader(samples(192)), 20), compute_loss)


class Agent(nn.Module):
    """An actor of two actions, and a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))


def log_probs_in_a_new_tensor(watching: Watching) -> None:
    """torch.tensor() of a list of log-probabilities copies their values: the policy's loss has no graph."""
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    watch = watching(agent, optimizer)
    for _episode in range(16):
        states = torch.randn(10, 4)
        for attempt in watch.attempts(batch={"states": states}):
            with attempt:
                log_probs, values, rewards = [], [], []
                for state in states:
                    policy = Categorical(logits=agent.actor(state))
                    action = policy.sample()
                    log_probs.append(policy.log_prob(action))
                    values.append(agent.critic(state)[0])
                    rewards.append(float(action == (state[0] > 0)))
                returns = torch.tensor(rewards).flip(0).cumsum(0).flip(0)
                advantages = returns - torch.stack(values)
                policy_loss = -(torch.tensor(log_probs) * advantages.detach()).mean()
                value_loss = advantages.pow(2).mean()
                loss = policy_loss + 0.5 * value_loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


class HashNet(nn.Module):
    """x -> a code of 16 bits -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.hash_layer, self.classifier = nn.Linear(32, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.sign(self.hash_layer(self.features(x)))
        return code, self.classifier(code)


def bits_without_a_slope(watching: Watching) -> None:
    """Codes are made by sign(), whose slope is zero everywhere: only the classifier behind them learns."""
    model = HashNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                _code, logits = model(batch["x"])
                loss = F.cross_entropy(logits, batch["y"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def one_logit(watching: Watching) -> None:
    """Two classes, one column for them, and the cross-entropy over that column: the loss is 0 whatever is predicted."""
    rows = samples(192).columns
    target = (rows["y"] % 2).float()[:, None]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, target.shape[1]))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in endless(loader(Rows(x=rows["x"], target=target)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                output = model(batch["x"])
                loss = criterion(output, batch["target"].argmax(dim=1))
                loss.backward()
                optimizer.step()


class TwoSides(nn.Module):
    """x -> what is seen from the front (B, 4), and from the back (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.SiLU())
        self.net_f, self.net_b = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.net_f(hidden), self.net_b(hidden)


def front_added_twice(watching: Watching) -> None:
    """The loss is to be the sum of the front's error and the back's, and is twice the front's."""
    model = TwoSides()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    rows = samples(192).columns
    data = Rows(x=rows["x"], front=rows["x"][:, :4].abs(), back=rows["x"][:, 4:].sin())
    watch = watching(model, optimizer)
    for batch in endless(loader(data), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                normal_f, normal_b = model(batch["x"])
                diff_f = (normal_f - batch["front"]).abs()
                diff_b = (normal_b - batch["back"]).abs()
                losses = {"normal": (diff_f + diff_f).mean(), "size": 1e-3 * normal_f.square().mean()}
                loss = torch.stack(list(losses.values())).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                history = {"front": diff_f.mean().item(), "back": diff_b.mean().item()}
        assert all(math.isfinite(value) for value in history.values())


_ZERO = ("parameter-without-gradient", "parameter-stands-still")

CASES = (
    Case(
        "temperature_as_a_number",
        "facebookresearch/dinov2#548",
        temperature_as_a_number,
        Expected(0, _ZERO, ("logit_scale",)),
        tags=("graph",),
    ),
    Case(
        "log_probs_in_a_new_tensor",
        "kengz/SLM-Lab#133",
        log_probs_in_a_new_tensor,
        Expected(0, ("loss-term-without-gradient", *_ZERO), ("policy_loss", "actor")),
        tags=("graph",),
    ),
    Case(
        "bits_without_a_slope",
        "torch/nn#1174",
        bits_without_a_slope,
        Expected(0, _ZERO, ("features", "hash_layer")),
        tags=("graph",),
    ),
    Case(
        "one_logit",
        "cnulab/RealNet#101",
        one_logit,
        Expected(
            0,
            ("loss-without-gradient", "input-without-influence", "labels-constant", *_ZERO),
            ("loss", "backward", "0", "2", "x", "target"),
        ),
        tags=("graph",),
    ),
    Case(
        "front_added_twice",
        "YuliangXiu/ICON#205",
        front_added_twice,
        Expected(0, ("input-without-influence", *_ZERO), ("net_b", "back")),
        tags=("graph",),
    ),
)
