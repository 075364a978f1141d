"""Healthy loops that look odd, in accelerate, Lightning, the Trainer of transformers, and DDP."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.cases.lightning_loops import module_of, trainer_of
from shadowlab.bench.silent.cases.trainer_loops import Wrapped, rows, train
from shadowlab.bench.silent.cases.two_ranks import shared
from shadowlab.bench.silent.nets import CLASSES, Net, classified, endless, loader, samples


def weighed_by_the_whole_window(watching: Watching) -> None:
    """Accumulation by hand in accelerate: losses are sums, over the number of labels in all three micro-batches."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader(samples(168)))
    watch = watching(model, optimizer, accelerator=accelerator)
    for window in zip(*[iter(batches)] * 3, strict=False):
        masks = [torch.rand(len(batch["y"])) < 0.7 for batch in window]
        labels = sum(int(mask.sum()) for mask in masks)
        for i, (batch, mask) in enumerate(zip(window, masks, strict=True)):
            for attempt in watch.attempts(batch={**batch, "mask": mask}):
                with attempt:
                    every = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
                    loss = (every * mask).sum() / labels
                    accelerator.backward(loss)
                    if i + 1 == len(window):
                        optimizer.step()
                        optimizer.zero_grad()


def toggled_in_turn(watching: Watching) -> None:
    """Manual optimization of a GAN: each optimizer is toggled for its turn, which freezes the other's network."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = nn.Linear(4, 8)
            self.critic = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(len(batch["x"]), 4)
        self.toggle_optimizer(optimizer_g)
        g_loss = F.softplus(-self.net.critic(self.net.generator(z))).mean()
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)
        self.toggle_optimizer(optimizer_d)
        fake = self.net.generator(z).detach()
        d_loss = F.softplus(-self.net.critic(batch["x"])).mean() + F.softplus(self.net.critic(fake)).mean()
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def configure_optimizers(self: Any) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.net.generator, self.net.critic)]

    methods = {"training_step": training_step, "configure_optimizers": configure_optimizers}
    trainer_of(watching).fit(module_of(Pair(), automatic_optimization=False, **methods), loader(samples(64)))


def tried_after_some_steps(watching: Watching) -> None:
    """The Trainer's model is tried on two samples now and then, in evaluation mode; training_step() puts it back."""
    tried: list[int] = []

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        if self.state.global_step % 3 == 2:
            model.eval()
            with torch.no_grad():
                tried.append(int(model(inputs["x"][:2])["logits"].argmax(-1)[0]))
            model.train()
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    train(watching, Wrapped(Net(dropout=0.2)), train_rows=rows(64), compute_loss=compute_loss)


class Normed(nn.Module):
    """x (B, 8) -> logits (B, 4), with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def statistics_of_each_rank(watching: Watching) -> None:
    """Each rank normalises by its own batch, and gathers statistics of its own; parameters are the same on all."""
    model = DistributedDataParallel(Normed(), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    watch = watching(model, optimizer)
    for batch in endless(shared(192), 12):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


CASES = (
    Case(
        "weighed_by_the_whole_window",
        "https://huggingface.co/docs/accelerate/usage_guides/gradient_accumulation",
        weighed_by_the_whole_window,
        host="accelerate",
    ),
    Case(
        "toggled_in_turn",
        "https://lightning.ai/docs/pytorch/stable/model/manual_optimization.html",
        toggled_in_turn,
        host="lightning",
    ),
    Case(
        "tried_after_some_steps",
        "https://huggingface.co/docs/transformers/main_classes/trainer",
        tried_after_some_steps,
        host="trainer",
    ),
    Case(
        "statistics_of_each_rank",
        "https://pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html",
        statistics_of_each_rank,
        host="ddp",
    ),
)
