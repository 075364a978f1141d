"""Likelihoods and schedules whose mend is not a clamp: lattices, masked sums, constant tables, squashed policies."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


class _Tagger(nn.Module):
    """Emission scores of a sequence, and a CRF's likelihood of its tags; some transitions are forbidden."""

    allowed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.emit = nn.Linear(5, 3)
        self.transitions = nn.Parameter(torch.randn(3, 3))
        self.register_buffer("allowed", torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 1]]).bool())

    def scores(self) -> Tensor:
        """Of moving from row to column, (3, 3); -inf where that is forbidden."""
        return self.transitions.masked_fill(~self.allowed, -torch.inf)

    def partition(self, emissions: Tensor) -> Tensor:
        """(B, T, 3) -> (B,)."""
        alpha = emissions[:, 0]
        for t in range(1, emissions.shape[1]):
            alpha = (alpha[:, :, None] + self.scores()).logsumexp(1) + emissions[:, t]
        return alpha.logsumexp(-1)

    def path(self, emissions: Tensor, tags: Tensor) -> Tensor:
        """(B, T, 3), (B, T) -> (B,)."""
        emitted = emissions.gather(2, tags[..., None])[..., 0].sum(1)
        return emitted + self.scores()[tags[:, :-1], tags[:, 1:]].sum(1)


def lattice_without_a_path() -> Scene:
    """A CRF whose dictionary allows no tag of one word: every path through the lattice is -inf, and so is the gold."""
    torch.manual_seed(0)
    model = _Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = {"words": torch.randn(4, 4, 5), "tags": torch.tensor([[0, 1, 1, 0]] * 4), "possible": torch.ones(4, 4, 3)}
    batch["possible"][2, 1] = 0

    def compute_loss() -> Tensor:
        emissions = model.emit(batch["words"]).masked_fill(batch["possible"] == 0, -torch.inf)
        return (model.partition(emissions) - model.path(emissions, batch["tags"])).mean()  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def likelihood_by_exponentials() -> Scene:
    """A CRF's likelihood as log(exp(gold - all)): the difference of a long sentence is below float32's range."""
    torch.manual_seed(1)
    model = _Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = {"words": torch.randn(3, 40, 5), "tags": torch.zeros(3, 40, dtype=torch.long)}
    batch["words"][1] *= 40

    def compute_loss() -> Tensor:
        emissions = model.emit(batch["words"])
        likelihood = torch.exp(model.path(emissions, batch["tags"]) - model.partition(emissions))
        return -torch.log(likelihood).mean()  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def divergence_of_masked_policies() -> Scene:
    """KL of two policies that forbid the same action by -inf: the logarithms' difference there is inf - inf."""
    torch.manual_seed(2)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"observations": torch.randn(5, 4), "old": torch.randn(5, 3), "legal": torch.ones(5, 3).bool()}
    batch["legal"][1, 2] = False

    def compute_loss() -> Tensor:
        now, before = (
            logits.masked_fill(~batch["legal"], -torch.inf).log_softmax(-1)
            for logits in (model(batch["observations"]), batch["old"])
        )
        ratio = now - before  # origin
        return (now.exp() * ratio).sum(-1).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def table_of_the_schedule() -> Scene:
    """A schedule's table is made once, before training: its last entry is 1/0, and a sample draws that entry."""
    torch.manual_seed(3)

    class Diffusion(nn.Module):
        kept: Tensor
        inverse: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(7, 6)
            self.register_buffer("kept", torch.linspace(1, 0, 10), persistent=False)
            self.register_buffer("inverse", (1 / self.kept).sqrt(), persistent=False)

        def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
            noise = self.net(torch.cat([noisy, t[:, None] / 10], 1))
            return self.inverse[t][:, None] * (noisy - (1 - self.kept[t])[:, None].sqrt() * noise)

    model = Diffusion()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = {"x": torch.randn(4, 6), "t": torch.tensor([2, 5, 9, 0])}
    step = training_step(lambda: F.mse_loss(model(batch["x"], batch["t"]), batch["x"]), optimizer)
    return Scene(step, model, optimizer, batch)


def beta_beyond_one() -> Scene:
    """A schedule for a thousand steps is scaled to ten: a beta is above one, and the table holds roots of negatives."""
    torch.manual_seed(4)

    class Diffusion(nn.Module):
        root: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(7, 6)
            betas = torch.linspace(1e-4, 0.02, 10) * 100
            self.register_buffer("root", (1 - betas).cumprod(0).sqrt())

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            noisy = self.root[t][:, None] * x + torch.randn_like(x)
            return self.net(torch.cat([noisy, t[:, None] / 10], 1))

    model = Diffusion()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = {"x": torch.randn(4, 6), "t": torch.tensor([1, 3, 0, 9])}
    return Scene(training_step(lambda: model(batch["x"], batch["t"]).pow(2).mean(), optimizer), model, optimizer, batch)


def scaled_action() -> Scene:
    """SAC takes log(1 - a^2) of an action that was scaled to the limits of its environment: a is beyond one."""
    torch.manual_seed(5)

    class Actor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            policy = torch.distributions.Normal(self.mean(x), self.spread(x).clamp(-5, 1).exp())
            raw = policy.rsample()
            action = 2.0 * raw.tanh()
            bound = torch.log(1 - action.pow(2) + 1e-6)  # origin
            return action, (policy.log_prob(raw) - bound).sum(-1)

    model = Actor()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    batch = {"observations": torch.randn(4, 4)}

    def compute_loss() -> Tensor:
        action, log_probability = model(batch["observations"])
        return (0.2 * log_probability + action.pow(2).sum(-1)).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def variance_of_an_encoder() -> Scene:
    """A VAE's log variance is not bounded: exp(0.5 * 200) is beyond float32, where float64 would hold it."""
    torch.manual_seed(6)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = nn.Linear(6, 4), nn.Linear(2, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, logvar = self.body(x).chunk(2, -1)
            spread = torch.exp(0.5 * logvar)  # origin
            return self.out(mean + spread * torch.randn_like(mean)), mean, logvar

    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    nn.init.constant_(model.body.bias, 1.0)
    batch: dict[str, Any] = {"x": torch.rand(4, 6), "name": ["a.png", "b.png", "c.png", "d.png"]}
    with torch.no_grad():
        model.body.weight[2:] = 1.0
    batch["x"] = batch["x"] + torch.tensor([0.0, 0.0, 33.0, 0.0])[:, None]

    def compute_loss() -> Tensor:
        again, mean, logvar = model(batch["x"])
        divergence = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(-1)
        return F.mse_loss(again, batch["x"]) + 0.0 * divergence.mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def temperature_of_clip() -> Scene:
    """CLIP's learnt temperature was never bounded: exp(100) is beyond float32."""
    torch.manual_seed(7)

    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = nn.Linear(5, 4), nn.Linear(6, 4)
            self.logit_scale = nn.Parameter(torch.tensor(100.0))

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            pair = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
            return self.logit_scale.exp() * pair[0] @ pair[1].T  # origin

    model = Clip()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = {"image": torch.randn(4, 5), "text": torch.randn(4, 6)}
    labels = torch.arange(4)

    def compute_loss() -> Tensor:
        logits = model(batch["image"], batch["text"])
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def flow_that_folds() -> Scene:
    """A coupling layer's scale is a sigmoid that is exactly zero for one sample, and its log-determinant -inf."""
    torch.manual_seed(8)

    class Coupling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            fixed, moved = x.chunk(2, -1)
            shift, raw = self.net(fixed).chunk(2, -1)
            scale = torch.sigmoid(raw + 2)
            return torch.cat([fixed, moved * scale + shift], -1), scale.log().sum(-1)  # origin

    model = Coupling()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"x": torch.randn(4, 4)}
    with torch.no_grad():
        model.net.weight[2:] = 1.0
    batch["x"][1, :2] = -60.0

    def compute_loss() -> Tensor:
        z, log_determinant = model(batch["x"])
        return (0.5 * z.pow(2).sum(-1) - log_determinant).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def critic_without_slope() -> Scene:
    """WGAN-GP: the critic is flat at one point between picture and forgery; the norm of zero has no slope."""
    torch.manual_seed(9)
    critic = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
    nn.init.constant_(critic.get_parameter("0.weight"), 0.2)
    batch = {"real": torch.rand(4, 4), "fake": torch.rand(4, 4)}
    batch["real"][2], batch["fake"][2] = -8.0, -8.0

    def step() -> Tensor:
        optimizer.zero_grad()
        share = torch.rand(4, 1)
        between = (share * batch["real"] + (1 - share) * batch["fake"]).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = ((slope.pow(2).sum(1).sqrt() - 1) ** 2).mean()  # origin
        loss = critic(batch["fake"]).mean() - critic(batch["real"]).mean() + 10 * penalty
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Scene(step, critic, optimizer, batch)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "lattice_without_a_path",
        "allenai/allennlp#4478",
        lattice_without_a_path,
        Expected("loss", "invalid", ..., samples=(2,)),
        ("advice", "mask"),
    ),
    Fault(
        "likelihood_by_exponentials",
        "allanj/pytorch_neural_crf#4",
        likelihood_by_exponentials,
        Expected("loss", "divide_by_zero", "underflow", "log", samples=(1,), at_origin=True),
        ("advice", "inf_first"),
    ),
    Fault(
        "divergence_of_masked_policies",
        "tensorforce/tensorforce#586",
        divergence_of_masked_policies,
        Expected("loss", "invalid", ..., "sub", samples=(1,), at_origin=True),
        ("advice", "mask"),
    ),
    Fault(
        "table_of_the_schedule",
        "huggingface/diffusers#3851",
        table_of_the_schedule,
        Expected("state", None, "bad_state", parameter="inverse"),
        ("advice", "buffer", "inf_first"),
    ),
    Fault(
        "beta_beyond_one",
        "lucidrains/imagen-pytorch#161",
        beta_beyond_one,
        Expected("state", None, "bad_state", parameter="root"),
        ("advice", "buffer"),
    ),
    Fault(
        "scaled_action",
        "philtabor/Actor-Critic-Methods-Paper-To-Code#7",
        scaled_action,
        Expected("forward", "invalid", "out_of_domain", "log", "", at_origin=True),
        ("advice",),
    ),
    Fault(
        "variance_of_an_encoder",
        "vanderschaarlab/synthcity#331",
        variance_of_an_encoder,
        Expected("forward", "overflow", "overflow", "exp", "", samples=(2,), sample_ids=("c.png",), at_origin=True),
        ("advice", "inf_first"),
    ),
    Fault(
        "temperature_of_clip",
        "kornia/kornia#3481",
        temperature_of_clip,
        Expected("forward", "overflow", "overflow", "exp", "", samples=(), at_origin=True),
        ("advice", "inf_first"),
    ),
    Fault(
        "flow_that_folds",
        "VincentStimper/normalizing-flows#67",
        flow_that_folds,
        Expected("forward", "divide_by_zero", "underflow", "log", "", samples=(1,), at_origin=True),
        ("advice", "inf_first"),
    ),
    Fault(
        "critic_without_slope",
        "keras-team/keras-io#910",
        critic_without_slope,
        Expected("backward", ..., "out_of_domain", samples=(2,), at_origin=True),
        ("advice", "double_backward"),
    ),
)
