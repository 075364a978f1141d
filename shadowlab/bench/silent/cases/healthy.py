"""Healthy loops that look odd: freezing, sharing, averaging, and more than one optimizer."""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.cases.modes import validate
from shadowlab.bench.silent.nets import Net, Seer, classified, endless, fit, loader, pictures, samples


def classifier(watching: Watching) -> None:
    """The loop of every tutorial, with validation, a schedule and clipping, each where it belongs."""
    model = Net(dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=48)
    held = loader(samples(32, seed=1), shuffle=False)
    watch = watching(model, optimizer)
    for _ in range(2):
        model.train()
        for batch in loader(samples(192)):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    optimizer.zero_grad()
                    loss = classified(model, batch)
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
        model.eval()
        validate(model, held)


def frozen_backbone(watching: Watching) -> None:
    """A linear probe: the backbone is frozen, runs in evaluation mode, and is in no optimizer."""
    model = Seer()
    model.backbone.requires_grad_(False).eval()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
    fit(watching, model, optimizer, endless(loader(pictures(160)), 24))


def frozen_batch_norm(watching: Watching) -> None:
    """Everything trains but the batch norm, which keeps its statistics: small batches of a detector."""
    model = Seer()
    norm = model.backbone[1]
    norm.requires_grad_(False)
    norm.eval()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fit(watching, model, torch.optim.AdamW(trainable, lr=1e-2), endless(loader(pictures(160), 4), 24))


class Tied(nn.Module):
    """Tokens (B, N) -> logits; the embedding is the last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(12, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 12, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.body(self.embedding(tokens))))
        return logits


def tied_weights(watching: Watching) -> None:
    """A language model whose last layer is its embedding: one tensor under two names."""
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    random = torch.Generator().manual_seed(0)
    watch = watching(model, optimizer)
    for _ in range(20):
        tokens = torch.randint(12, (4, 9), generator=random)
        for attempt in watch.attempts(batch={"input_ids": tokens}):
            with attempt:
                optimizer.zero_grad(set_to_none=True)
                loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
                loss.backward()
                optimizer.step()


def averaged_for_validation(watching: Watching) -> None:
    """An EMA that is swapped in for validation, and out again."""
    model = Net()
    ema_model = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held = loader(samples(32, seed=1), shuffle=False)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for average, parameter in zip(ema_model.parameters(), model.parameters(), strict=True):
                        average.lerp_(parameter, 0.1)
        if step % 3 == 2:
            kept = copy.deepcopy(model.state_dict())
            model.load_state_dict(ema_model.state_dict())
            model.eval()
            validate(model, held)
            model.load_state_dict(kept)
            model.train()


def gan(watching: Watching) -> None:
    """Two optimizers; the generator's backward leaves gradients in the critic, which are zeroed before they count."""
    generator, critic = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    watch = watching([generator, critic], [optimizer_g, optimizer_d])
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                fake = generator(torch.randn(len(batch["x"]), 4))
                optimizer_d.zero_grad()
                loss_d = F.softplus(-critic(batch["x"])).mean() + F.softplus(critic(fake.detach())).mean()
                loss_d.backward()
                optimizer_d.step()
                optimizer_g.zero_grad()
                loss_g = F.softplus(-critic(fake)).mean()
                loss_g.backward()
                optimizer_g.step()


def critic_five_times(watching: Watching) -> None:
    """WGAN: the generator steps every third time only; in between it stands still."""
    generator, critic = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer_g = torch.optim.RMSprop(generator.parameters(), lr=1e-3)
    optimizer_d = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    watch = watching([generator, critic], [optimizer_g, optimizer_d])
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                fake = generator(torch.randn(len(batch["x"]), 4))
                optimizer_d.zero_grad()
                loss_d = critic(fake.detach()).mean() - critic(batch["x"]).mean()
                loss_d.backward()
                optimizer_d.step()
                with torch.no_grad():
                    for parameter in critic.parameters():
                        parameter.clamp_(-0.1, 0.1)
                if step % 3 == 2:
                    optimizer_g.zero_grad()
                    loss_g = -critic(fake).mean()
                    loss_g.backward()
                    optimizer_g.step()


class Reverse(torch.autograd.Function):
    """Identity whose gradient has its sign turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -gradients[0]


def gradient_reversal(watching: Watching) -> None:
    """Domain adaptation: the encoder is trained against the domain's classifier."""
    model = Net()
    domain = nn.Linear(16, 2)
    optimizer = torch.optim.SGD(itertools.chain(model.parameters(), domain.parameters()), lr=0.05)
    watch = watching([model, domain], optimizer)
    for batch in endless(loader(samples(192)), 24):
        other = batch["x"] + 1.0
        for attempt in watch.attempts(batch={**batch, "other": other}):
            with attempt:
                optimizer.zero_grad()
                features = model.encoder(torch.cat([batch["x"], other]))
                class_loss = F.cross_entropy(model.head(features[: len(other)]), batch["y"])
                which = torch.arange(2).repeat_interleave(len(other))
                domain_loss = F.cross_entropy(domain(Reverse.apply(features)), which)
                loss = class_loss + 0.1 * domain_loss
                loss.backward()
                optimizer.step()


CASES = (
    Case("classifier", "https://pytorch.org/tutorials/beginner/basics/optimization_tutorial.html", classifier),
    Case("frozen_backbone", "https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html", frozen_backbone),
    Case("frozen_batch_norm", "pytorch/pytorch#66073", frozen_batch_norm),
    Case("tied_weights", "https://arxiv.org/abs/1608.05859", tied_weights),
    Case("averaged_for_validation", "https://arxiv.org/abs/2006.11239", averaged_for_validation),
    Case("gan", "https://pytorch.org/tutorials/beginner/dcgan_faces_tutorial.html", gan),
    Case("critic_five_times", "https://arxiv.org/abs/1701.07875", critic_five_times),
    Case("gradient_reversal", "https://arxiv.org/abs/1505.07818", gradient_reversal),
)
