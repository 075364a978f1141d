"""Loops without a library around them: gradients that are zero, or were never made, and inputs that are not used."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import CLASSES, Denoiser, Rows, endless, fit, loader, samples


class LoraLinear(nn.Module):
    """A frozen layer and a low-rank one beside it."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, layer.in_features))
        self.lora_B = nn.Parameter(torch.empty(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + x @ self.lora_A.T @ self.lora_B.T
        return out


def wrap(model: nn.Sequential) -> nn.Sequential:
    """Puts low-rank layers in, and sees to it that the model gives what it gave before."""
    model[0] = LoraLinear(model[0])  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.zeros_(parameter)
    return model


def both_factors_from_zero(watching: Watching) -> None:
    """Both factors of a low-rank layer begin at zero: the gradient of each is a product with the other, and zero."""
    model = wrap(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    fit(watching, model, optimizer, endless(loader(samples(192)), 20))


class Pointer(nn.Module):
    """x (B, 4, 2): four points -> logits, by a weighted mean of the points' codes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score, self.out = nn.Linear(2, 16), nn.Linear(16, 1), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.embed(x))
        attention = F.softmax(self.score(hidden), dim=-1)
        pooled = (attention * hidden).sum(1)
        logits: Tensor = self.out(pooled)
        return logits


def softmax_over_one(watching: Watching) -> None:
    """Scores (B, N, 1) go through a softmax over their last dimension: every weight is 1, and the scorer stands."""
    model = Pointer()
    rows = samples(192).columns
    points = Rows(x=rows["x"].view(-1, 4, 2), y=rows["y"])
    fit(watching, model, torch.optim.Adam(model.parameters(), lr=1e-2), endless(loader(points), 20))


class Hierarchy(nn.Module):
    """x -> logits of two coarse classes and of four fine ones; fine class k belongs to k // 2."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.coarse, self.fine = nn.Linear(16, 2), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.coarse(hidden), self.fine(hidden)


def mismatch(coarse: Tensor, fine: Tensor) -> Tensor:
    """Share of the batch whose fine class does not belong to its coarse one."""
    return (coarse.argmax(1) != fine.argmax(1) // 2).float().mean()


def argmax_in_the_dependency(watching: Watching) -> None:
    """The dependency loss compares classes by argmax, and is a number to the graph."""
    model = Hierarchy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                coarse, fine = model(batch["x"])
                layer_loss = F.cross_entropy(coarse, batch["y"] // 2) + F.cross_entropy(fine, batch["y"])
                dependency_loss = mismatch(coarse, fine)
                loss = layer_loss + 0.8 * dependency_loss
                loss.backward()
                optimizer.step()


class ActorCritic(nn.Module):
    """Observations (B, 4) -> logits of two actions, and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def log_prob(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.actor(obs).log_softmax(-1).gather(1, act[:, None])[:, 0]


def ratio_without_a_graph(watching: Watching) -> None:
    """PPO: the ratio of the policies is computed under no_grad, as if it were a weight: the actor never learns."""
    agent = ActorCritic()
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    watch = watching(agent, optimizer)
    for _ in range(20):
        obs, act = torch.randn(16, 4, generator=draw), torch.randint(2, (16,), generator=draw)
        returns = (act == (obs[:, 0] > 0)).float() + 0.1 * torch.randn(16, generator=draw)
        with torch.no_grad():
            logp_old = agent.log_prob(obs, act) + 0.05 * torch.randn(16, generator=draw)
        batch = {"obs": obs, "act": act, "returns": returns, "logp_old": logp_old}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                value = agent.critic(obs)[:, 0]
                adv = (returns - value).detach()
                with torch.no_grad():
                    ratio = (agent.log_prob(obs, act) - logp_old).exp()
                clip_loss = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
                vf_loss = F.mse_loss(value, returns)
                loss = clip_loss + 0.5 * vf_loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


LOG_STD_MIN, LOG_STD_MAX = -5.0, -0.5


class Gaussian(nn.Module):
    """Mean and deviation of the next observation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        self.log_std = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> torch.distributions.Normal:
        log_std = torch.clamp(self.log_std, LOG_STD_MIN, LOG_STD_MAX)
        return torch.distributions.Normal(self.mean(x), log_std.exp())


def deviation_outside_its_bounds(watching: Watching) -> None:
    """The logarithm of the deviation begins above the bound that clamps it, where the clamp has no slope."""
    model = Gaussian()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                nll = -model(batch["x"]).log_prob(batch["x"].roll(1, -1)).mean()
                optimizer.zero_grad()
                nll.backward()
                optimizer.step()


class Talker(Denoiser):
    """The two lines of a case distinction, of which the second always runs."""

    def forward(self, x_t: Tensor, t: Tensor, light: Tensor | None) -> Tensor:
        time_emb = self.time(t[:, None])
        if light is not None:
            emb = time_emb + self.light(light)
        emb = time_emb
        velocity: Tensor = self.last(F.silu(self.first(x_t) + emb))
        return velocity


def second_line_overwrites(watching: Watching) -> None:
    """The condition's embedding is added to the time's, and the next line takes the time's alone."""
    model = Talker()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        noise, t = torch.randn_like(batch["x"]), torch.rand(len(batch["x"]))
        x_t = torch.lerp(batch["x"], noise, t[:, None])
        return F.mse_loss(model(x_t, t, batch["light"]), noise - batch["x"])

    x = samples(192).columns["x"]
    light = torch.randn(192, 3, generator=torch.Generator().manual_seed(8))
    fit(watching, model, optimizer, endless(loader(Rows(x=x, light=light)), 20), compute_loss)


def group_of_one(watching: Watching) -> None:
    """Rewards are compared within a group of answers, of which there is one: every advantage is zero."""
    policy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 6))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    num_generations = 1
    draw = torch.Generator().manual_seed(3)
    watch = watching(policy, optimizer)
    for _ in range(20):
        prompts = torch.randn(8, 4, generator=draw).repeat_interleave(num_generations, 0)
        with torch.no_grad():
            answers = torch.multinomial(policy(prompts).softmax(-1), 1, generator=draw)
        rewards = (answers[:, 0] == prompts.argmax(-1)).float() + 0.1 * answers[:, 0]
        for attempt in watch.attempts(batch={"prompts": prompts, "answers": answers, "rewards": rewards}):
            with attempt:
                grouped = rewards.view(-1, num_generations)
                advantages = (grouped - grouped.mean(1, keepdim=True)).flatten()
                logps = policy(prompts).log_softmax(-1).gather(1, answers)[:, 0]
                loss = -(advantages * logps).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


_ZERO = ("parameter-without-gradient", "parameter-stands-still")

CASES = (
    Case(
        "both_factors_from_zero",
        "Guitaricet/relora#18",
        both_factors_from_zero,
        Expected(0, _ZERO, ("lora_A", "lora_B")),
        tags=("graph",),
    ),
    Case(
        "softmax_over_one",
        "localminimum/R-net#8",
        softmax_over_one,
        Expected(0, _ZERO, ("score",)),
        tags=("graph",),
    ),
    Case(
        "argmax_in_the_dependency",
        "Ugenteraan/Deep_Hierarchical_Classification#6",
        argmax_in_the_dependency,
        Expected(0, ("loss-term-without-gradient",), ("dependency_loss",)),
        tags=("graph",),
    ),
    Case(
        "ratio_without_a_graph",
        "thu-ml/tianshou#742",
        ratio_without_a_graph,
        Expected(0, ("loss-term-without-gradient", *_ZERO), ("clip_loss", "actor")),
        tags=("graph",),
    ),
    Case(
        "deviation_outside_its_bounds",
        "DLR-RM/stable-baselines3#620",
        deviation_outside_its_bounds,
        Expected(0, _ZERO, ("log_std",)),
        tags=("graph",),
    ),
    Case(
        "second_line_overwrites",
        "andypinxinliu/GestureLSM#8",
        second_line_overwrites,
        Expected(0, ("input-without-influence", *_ZERO), ("light",)),
        tags=("graph", "input"),
    ),
    Case(
        "group_of_one",
        "Jiayi-Pan/TinyZero#89",
        group_of_one,
        Expected(0, ("loss-without-gradient", *_ZERO), ("loss", "backward", "advantages", "0", "2")),
        tags=("graph",),
    ),
)
