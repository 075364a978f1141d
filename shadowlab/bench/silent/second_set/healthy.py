"""Healthy loops that look odd, without a library around them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.cases.modes import validate
from shadowlab.bench.silent.nets import (
    Net,
    Rows,
    Seer,
    classified,
    endless,
    fit,
    loader,
    pictures,
    samples,
)


def discriminator() -> nn.Sequential:
    """x (B, 8) -> score (B, 1)."""
    return nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))


def gan_of_one_forward(watching: Watching) -> None:
    """A GAN with one forward pass for both losses; `inputs=` keeps each backward to its own network."""
    net_g, net_d = nn.Linear(4, 8), discriminator()
    opt_g = torch.optim.Adam(net_g.parameters(), lr=1e-3)
    opt_d = torch.optim.Adam(net_d.parameters(), lr=1e-3)
    watch = watching([net_g, net_d], [opt_g, opt_d])
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                opt_g.zero_grad()
                opt_d.zero_grad()
                on_fake = net_d(net_g(torch.randn(len(batch["x"]), 4)))
                loss_g = F.softplus(-on_fake).mean()
                loss_d = F.softplus(-net_d(batch["x"])).mean() + F.softplus(on_fake).mean()
                loss_g.backward(retain_graph=True, inputs=list(net_g.parameters()))
                loss_d.backward(inputs=list(net_d.parameters()))
                opt_g.step()
                opt_d.step()


def nets_clipped_apart(watching: Watching) -> None:
    """A GAN under one scaler: each network is unscaled, clipped and stepped by itself, and update() comes last."""
    net_g, net_d = nn.Linear(4, 8), discriminator()
    opt_g, opt_d = (torch.optim.AdamW(net.parameters(), lr=1e-3) for net in (net_g, net_d))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    watch = watching([net_g, net_d], [opt_g, opt_d])
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                with torch.autocast("cpu", torch.bfloat16):
                    fake = net_g(torch.randn(len(batch["x"]), 4))
                    loss_d = F.softplus(-net_d(batch["x"])).mean() + F.softplus(net_d(fake.detach())).mean()
                opt_d.zero_grad()
                scaler.scale(loss_d).backward()
                scaler.unscale_(opt_d)
                clip_grad_norm_(net_d.parameters(), 0.5)
                scaler.step(opt_d)
                with torch.autocast("cpu", torch.bfloat16):
                    loss_g = F.softplus(-net_d(fake)).mean()
                opt_g.zero_grad()
                scaler.scale(loss_g).backward()
                scaler.unscale_(opt_g)
                clip_grad_norm_(net_g.parameters(), 0.5)
                scaler.step(opt_g)
                scaler.update()


def two_scaled_losses(watching: Watching) -> None:
    """Two losses, each scaled, with a backward of its own; the graph is kept for the second."""
    model, side = Net(), nn.Linear(16, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *side.parameters()], lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    watch = watching([model, side], optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                features = model.encoder(batch["x"])
                loss0 = F.cross_entropy(model.head(features), batch["y"])
                loss1 = F.cross_entropy(side(features), batch["y"] % 2)
                scaler.scale(loss0).backward(retain_graph=True)
                scaler.scale(loss1).backward()
                scaler.step(optimizer)
                scaler.update()


def divided_by_the_tokens(watching: Watching) -> None:
    """Losses are summed over four micro-batches; gradients are divided by the number of samples before the step."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = 0
    batches = list(loader(samples(190)))
    watch = watching(model, optimizer)
    for index, batch in enumerate(batches):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")
                loss.backward()
                seen += len(batch["y"])
                if index % 4 == 3 or index + 1 == len(batches):
                    for parameter in model.parameters():
                        if parameter.grad is not None:
                            parameter.grad.div_(seen)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    seen = 0


def ones_and_zeros_in_the_batch(watching: Watching) -> None:
    """Sample weights of one, crop offsets of zero, and now and then a mask in which nothing is to be filled."""
    model = nn.ModuleDict({"picture": nn.Linear(8, 16), "mask": nn.Linear(8, 16), "crop": nn.Linear(2, 16)})
    model["last"] = nn.Linear(16, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(0)
    watch = watching(model, optimizer)
    for step, row in enumerate(endless(loader(samples(192)), 20)):
        number = len(row["x"])
        mask = (torch.rand(number, 8, generator=draw) > 0.5).float() * (step % 5 != 2)
        batch = {"x": row["x"], "mask": mask, "crop": torch.zeros(number, 2), "weight": torch.ones(number)}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                hidden = model["picture"](batch["x"] * (1 - mask)) + model["mask"](mask) + model["crop"](batch["crop"])
                error = (model["last"](torch.relu(hidden)) - batch["x"]).square().mean(1)
                loss = (error * batch["weight"]).mean()
                loss.backward()
                optimizer.step()


def dark_pictures(watching: Watching) -> None:
    """Photographs at night, in [0, 1] as they should be: few values are above 0.1, and one picture is almost black."""
    night = pictures(160)
    night.columns["picture"] = 0.12 * night.columns["picture"].square()
    night.columns["picture"][7] *= 1e-3
    model = Seer()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), endless(loader(night), 20))


def cosine_with_restarts(watching: Watching) -> None:
    """The rate falls to zero in six steps, jumps back to its beginning, and takes twelve the next time."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=6, T_mult=2)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
                scheduler.step()


class Shadow:
    """Averages of parameters, which can be put into their places and taken out again."""

    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        self.parameters, self.decay = list(model.parameters()), decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.stored: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter, 1 - self.decay)

    def __enter__(self) -> None:
        self.stored = [parameter.detach().clone() for parameter in self.parameters]
        self._put(self.averages)

    def __exit__(self, *error: object) -> None:
        self._put(self.stored)

    def _put(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.data.copy_(value)


def averages_in_their_places(watching: Watching) -> None:
    """Averaged weights are copied in place of the model's for validation, and the model's come back after it."""
    model = Net(dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ema, held = Shadow(model), loader(samples(32, seed=1), shuffle=False)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        model.train()
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
                ema.update()
        if step % 6 == 5:
            model.eval()
            with ema:
                validate(model, held)


def closure_of_adam(watching: Watching) -> None:
    """Adam takes a closure as L-BFGS does, calls it once, and zero_grad() is in it."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = classified(model, batch)
            loss.backward()
            return loss

        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.step(closure)


def logged_beside_the_loss(watching: Watching) -> None:
    """An absolute error that is called a loss, computed without a graph, and only written down."""
    model = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history: list[dict[str, float]] = []
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        target = batch["x"].flip(-1)
        for attempt in watch.attempts(batch={"x": batch["x"], "target": target}):
            with attempt:
                optimizer.zero_grad()
                predicted = model(batch["x"])
                loss = F.mse_loss(predicted, target)
                with torch.no_grad():
                    l1_loss = F.l1_loss(predicted, target)
                    target_norm = target.norm(dim=-1).mean()
                loss.backward()
                optimizer.step()
                history.append({"loss": loss.item(), "l1_loss": l1_loss.item(), "norm": target_norm.item()})


def target_network(watching: Watching) -> None:
    """Q-learning: the target network has no gradient and no optimizer, and is overwritten every fourth step."""
    online, target = (nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)) for _ in range(2))
    target.load_state_dict(online.state_dict())
    target.requires_grad_(False)
    optimizer = torch.optim.AdamW(online.parameters(), lr=1e-3, amsgrad=True)
    draw = torch.Generator().manual_seed(0)
    watch = watching([online, target], optimizer)
    for step in range(24):
        state, action = torch.randn(16, 4, generator=draw), torch.randint(2, (16, 1), generator=draw)
        batch = {"state": state, "action": action, "next_state": state + 0.1, "done": torch.zeros(16)}
        batch["reward"] = (action[:, 0] == (state[:, 0] > 0)).float()
        for attempt in watch.attempts(batch=batch):
            with attempt:
                following = target(batch["next_state"]).amax(1) * (1 - batch["done"])
                chosen = online(state).gather(1, action)[:, 0]
                loss = F.smooth_l1_loss(chosen, batch["reward"] + 0.9 * following)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_value_(online.parameters(), 100)
                optimizer.step()
        if step % 4 == 3:
            target.load_state_dict(online.state_dict())


class Quantised(nn.Module):
    """An autoencoder whose codes are looked up, with a straight-through estimator around the look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codebook, self.decoder = nn.Linear(8, 4), nn.Embedding(32, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x)
        codes = self.codebook(torch.cdist(z, self.codebook.weight).argmin(-1))
        return self.decoder(z + (codes - z).detach()), z, codes


def codes_that_nobody_uses(watching: Watching) -> None:
    """A codebook with a straight-through estimator: many of its rows are never the nearest, and stay."""
    model = Quantised()

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        restored, z, codes = model(batch["x"])
        codebook_loss, commitment_loss = F.mse_loss(codes, z.detach()), F.mse_loss(z, codes.detach())
        return F.mse_loss(restored, batch["x"]) + codebook_loss + 0.25 * commitment_loss

    rows = Rows(x=samples(192).columns["x"])
    fit(watching, model, torch.optim.Adam(model.parameters(), lr=1e-2), endless(loader(rows), 20), compute_loss)


CASES = (
    Case(
        "gan_of_one_forward", "https://pytorch.org/docs/stable/generated/torch.Tensor.backward.html", gan_of_one_forward
    ),
    Case("nets_clipped_apart", "lucidrains/magvit2-pytorch#10", nets_clipped_apart),
    Case("two_scaled_losses", "https://pytorch.org/docs/stable/notes/amp_examples.html", two_scaled_losses),
    Case("divided_by_the_tokens", "https://huggingface.co/blog/gradient_accumulation", divided_by_the_tokens),
    Case("ones_and_zeros_in_the_batch", "https://arxiv.org/abs/2307.01952", ones_and_zeros_in_the_batch),
    Case("dark_pictures", "https://arxiv.org/abs/1805.01934", dark_pictures),
    Case("cosine_with_restarts", "https://arxiv.org/abs/1608.03983", cosine_with_restarts),
    Case("averages_in_their_places", "fadel/pytorch_ema#3", averages_in_their_places),
    Case("closure_of_adam", "https://pytorch.org/docs/stable/optim.html#optimizer-step-closure", closure_of_adam),
    Case("logged_beside_the_loss", "CompVis/stable-diffusion#832", logged_beside_the_loss),
    Case(
        "target_network",
        "https://pytorch.org/tutorials/intermediate/reinforcement_q_learning.html",
        target_network,
    ),
    Case("codes_that_nobody_uses", "https://arxiv.org/abs/1711.00937", codes_that_nobody_uses),
)
