"""Optimizers that hold other tensors than the model, and freezing that does not freeze."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import CLASSES, Net, Seer, classified, endless, fit, loader, pictures, samples


def head_replaced(watching: Watching) -> None:
    """The classifier is exchanged for the new classes after the optimizer was made; it never trains."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.head = nn.Linear(16, CLASSES)
    fit(watching, model, optimizer, loader(samples(192)))


def conv_in_widened(watching: Watching) -> None:
    """A UNet's first convolution is widened for the mask channel, but AdamW holds the narrow one."""
    model = Seer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    old: Any = model.backbone[0]
    new = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :3] = old.weight
    model.backbone[0] = new

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        mask = (batch["picture"].mean(1, keepdim=True) > 0.5).float()
        return F.cross_entropy(model(torch.cat([batch["picture"], mask], 1)), batch["y"])

    fit(watching, model, optimizer, loader(pictures(), 8), compute_loss)


class Highway(nn.Module):
    """Its blocks stand in a Python list, which registers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Linear(8, 8) for _ in range(3)]
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.relu(block(x))
        logits: Tensor = self.head(x)
        return logits


def blocks_in_a_list(watching: Watching) -> None:
    """Blocks in a Python list are no submodules: the optimizer never hears of them."""
    model = Highway()
    fit(watching, model, torch.optim.Adam(model.parameters(), lr=1e-2), loader(samples(192)))


class Margin(nn.Module):
    """Class centres (4, 16) of a cosine softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(CLASSES, 16))

    def forward(self, features: Tensor) -> Tensor:
        return 8 * F.linear(F.normalize(features), F.normalize(self.centres))


def margin_left_out(watching: Watching) -> None:
    """Metric learning: the loss has weights of its own, and the optimizer was given the network's alone."""
    model, metric_fc = Net(), Margin()
    model.head = nn.Identity()  # type: ignore[assignment]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    watch = watching([model, metric_fc], optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                features = model(batch["x"])
                loss = F.cross_entropy(metric_fc(features), batch["y"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def head_in_two_optimizers(watching: Watching) -> None:
    """A faster optimizer for the head, and the slow one has all parameters: the head is stepped twice."""
    model = Net()
    slow = torch.optim.AdamW(model.parameters(), lr=1e-3)
    fast = torch.optim.AdamW(model.head.parameters(), lr=1e-2)
    watch = watching(model, [slow, fast])
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                slow.zero_grad()
                fast.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                slow.step()
                fast.step()


def frozen_but_decayed(watching: Watching) -> None:
    """The prompt of the first task is frozen when the second begins; the optimizer still holds it, its gradient is
    zero and not None, and weight decay and momentum carry it on."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        if step == 3:
            for parameter in model.encoder.parameters():
                parameter.requires_grad = False
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad(set_to_none=False)
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def frozen_backbone_adapts(watching: Watching) -> None:
    """Linear probing on a frozen backbone whose batch norm goes on collecting statistics."""
    model = Seer()
    for parameter in model.backbone.parameters():
        parameter.requires_grad = False
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    model.train()
    fit(watching, model, optimizer, loader(pictures(), 8))


def optimizer_of_the_copy(watching: Watching) -> None:
    """The model is built again from its configuration after the optimizer was made, and the new one is trained."""

    def build() -> Net:
        torch.manual_seed(3)
        return Net()

    model = build()
    optimizer = torch.optim.Adam(itertools.chain(model.encoder.parameters(), model.head.parameters()), lr=1e-2)
    model = build()
    fit(watching, model, optimizer, loader(samples(192)))


def teacher_is_trained(watching: Watching) -> None:
    """Distillation: the teacher, meant to stay, is in the optimizer's list next to the student, with decay."""
    teacher, student = Net(), Net()
    teacher.requires_grad_(False)
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.1, weight_decay=0.1)
    watch = watching([student, teacher], optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                for parameter in teacher.parameters():  # a clean-up that an older version of the loop needed
                    parameter.grad = torch.zeros_like(parameter)
                optimizer.zero_grad(set_to_none=False)
                with torch.no_grad():
                    wanted = teacher(batch["x"]).softmax(-1)
                loss = F.kl_div(student(batch["x"]).log_softmax(-1), wanted, reduction="batchmean")
                loss.backward()
                optimizer.step()


_STRANGER = ("optimizer-holds-stranger", "parameter-without-optimizer", "parameter-stands-still")

CASES = (
    Case("head_replaced", "microsoft/nni#4521", head_replaced, Expected(0, _STRANGER, ("head",)), tags=("optimizer",)),
    Case(
        "conv_in_widened",
        "pytorch/pytorch#14467",
        conv_in_widened,
        Expected(0, _STRANGER, ("backbone.0",)),
        tags=("optimizer",),
    ),
    Case(
        "blocks_in_a_list",
        "pytorch/pytorch#59925",
        blocks_in_a_list,
        Expected(0, ("parameter-without-optimizer", "parameter-stands-still"), ("blocks",)),
        tags=("optimizer",),
    ),
    Case(
        "margin_left_out",
        "ronghuaiyang/arcface-pytorch#20",
        margin_left_out,
        Expected(0, ("parameter-without-optimizer", "parameter-stands-still"), ("centres",)),
        tags=("optimizer",),
    ),
    Case(
        "head_in_two_optimizers",
        "pytorch/pytorch#40967",
        head_in_two_optimizers,
        Expected(0, ("parameter-in-two-groups",), ("head",)),
        tags=("optimizer",),
    ),
    Case(
        "frozen_but_decayed",
        "iamwangyabin/S-Prompts#2",
        frozen_but_decayed,
        Expected(3, ("frozen-parameter-moves",), ("encoder",)),
        tags=("frozen",),
    ),
    Case(
        "frozen_backbone_adapts",
        "lightly-ai/lightly#1438",
        frozen_backbone_adapts,
        Expected(0, ("frozen-parameter-moves",), ("backbone.1",)),
        tags=("frozen",),
    ),
    Case(
        "optimizer_of_the_copy",
        "huggingface/accelerate#2665",
        optimizer_of_the_copy,
        Expected(0, _STRANGER, ("encoder", "head")),
        tags=("optimizer", "traincheck"),
    ),
    Case(
        "teacher_is_trained",
        "facebookresearch/fairseq#4702",
        teacher_is_trained,
        Expected(0, ("frozen-parameter-moves",), ("encoder", "head")),
        tags=("frozen",),
    ),
)
