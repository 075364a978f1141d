"""Loops whose optimizer steps outside of what is watched, and loops that write to weights after the update."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import gradient_of


def trainer_updates_half_weights() -> Scene:
    """Hugging Face's Trainer: `training_step` is watched, the update follows outside; eps is zero in float16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9)).half()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    batch = {"input_ids": torch.randint(9, (3, 5))}

    def training_step() -> Tensor:
        logits = model(batch["input_ids"][:, :-1]).float()
        loss = 1e-3 * F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:])
        loss.backward()
        return loss.detach()

    def update() -> None:
        optimizer.step()
        model.zero_grad()

    return Scene(training_step, model, optimizer, batch, before=(training_step,), between=update)


def trainer_updates_with_spoilt_moment() -> Scene:
    """The same with float32: gradients of 1e22 square beyond the range, and the second moment stays infinite."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"x": torch.randn(4, 6)}

    def training_step(scale: float = 1.0) -> Tensor:
        loss = scale * model(batch["x"]).mean()
        loss.backward()
        return loss.detach()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Scene(training_step, model, optimizer, batch, before=(lambda: training_step(1e23),), between=update)


def rate_outside_is_undefined() -> Scene:
    """A schedule without warm-up gives 0/0 as rate to SGD, which steps outside: nothing but the weight shows it."""
    torch.manual_seed(2)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(4, 6)}
    warm_up = 0

    def training_step() -> Tensor:
        loss = model(batch["x"]).pow(2).mean()
        loss.backward()
        return loss.detach()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 0.1 * float(torch.tensor(0.0) / warm_up)

    before = (training_step, training_step)
    return Scene(training_step, model, optimizer, batch, before=before, between=update)


def healthy_trainer() -> Scene:
    """Benign: the update outside of what is watched, with weight decay, clipping and a schedule."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    batch = {"x": torch.randn(4, 6)}

    def training_step() -> Tensor:
        loss = model(batch["x"]).pow(2).mean()
        loss.backward()
        return loss.detach()

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.zero_grad()

    return Scene(training_step, model, optimizer, batch, before=(training_step, training_step), between=update)


def forced_weight_norm() -> Scene:
    """EDM2 and nGPT: rows are brought back to unit length after each update; a row that was pruned is 0/0."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.SiLU(), nn.Linear(5, 2, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(4, 6)}
    with torch.no_grad():
        model.get_parameter("0.weight")[3] = 0.0
        model.get_parameter("2.weight")[:, 3] = 0.0

    def step() -> Tensor:
        loss = model(batch["x"]).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight / weight.norm(dim=1, keepdim=True))  # origin
        return loss

    return Scene(step, model, optimizer, batch)


def pruned_by_a_quantile() -> Scene:
    """Magnitude pruning through `.data` after the update rescales what it keeps: of a layer that it empties, by 1/0."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"x": torch.randn(4, 6), "y": torch.randn(4, 1)}
    nn.init.constant_(model.get_parameter("2.weight"), 1e-3)

    def prune(weight: nn.Parameter) -> None:
        keep = weight.data.abs() > 0.02
        share = keep.float().mean()
        weight.data = weight.data * keep / share  # origin

    def step() -> Tensor:
        loss = F.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name in ("0.weight", "2.weight"):
            prune(model.get_parameter(name))
        return loss

    return Scene(step, model, optimizer, batch)


def average_is_swapped_in() -> Scene:
    """An average in float16 is copied back into the weights after the update (switch EMA); one is beyond 65504."""
    torch.manual_seed(6)
    model = nn.Linear(6, 4)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(4, 6)}
    with torch.no_grad():
        model.bias[1] = 9e4
        average.bias[1] = 9e4

    def step() -> Tensor:
        loss = model(batch["x"]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, weight in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(weight, 0.1)
                weight.copy_(kept.half())  # origin
        return loss

    return Scene(step, model, optimizer, batch)


def projected_gradient() -> Scene:
    """A conflict-free update (PCGrad) projects one gradient on another, which is zero for an unused head."""
    torch.manual_seed(7)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(4, 6), "first": torch.randn(4), "weight": torch.zeros(4)}

    def step() -> Tensor:
        optimizer.zero_grad()
        both = model(batch["x"])
        losses = [(both[:, 0] - batch["first"]).pow(2).mean(), (batch["weight"] * both[:, 1].pow(2)).mean()]
        gradients = []
        for loss in losses:
            model.zero_grad()
            loss.backward(retain_graph=True)
            gradients.append(gradient_of(model.get_parameter("weight")).clone())
        first, second = gradients
        model.weight.grad = first - (first * second).sum() / second.norm() ** 2 * second  # origin
        optimizer.step()
        return losses[0]

    return Scene(step, model, optimizer, batch)


def healthy_renormalised() -> Scene:
    """Benign: weights clipped, renormalised and swapped with their average after the update, through `.data`."""
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 2, bias=False))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    average = [weight.detach().clone() for weight in model.parameters()]
    batch = {"x": torch.randn(4, 6)}

    def step() -> Tensor:
        loss = model(batch["x"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for weight, kept in zip(model.parameters(), average, strict=True):
            weight.data.clamp_(-0.4, 0.4)
            weight.data = F.normalize(weight.data, dim=1)
            kept.lerp_(weight.data, 0.5)
            weight.data, kept.data = kept.clone(), weight.data.clone()
        return loss

    return Scene(step, model, optimizer, batch, before=(step,))


FAULTS: tuple[Fault, ...] = (
    Fault(
        "trainer_updates_half_weights",
        "pytorch/pytorch#147437",
        trainer_updates_half_weights,
        Expected("state", None, "bad_state", parameter="0.weight"),
        ("outside", "float16", "inf_first"),
        watched=Expected(..., ..., ..., parameter="0.weight", says=("eps", "optimizer")),
    ),
    Fault(
        "trainer_updates_with_spoilt_moment",
        "deepspeedai/DeepSpeed#8035",
        trainer_updates_with_spoilt_moment,
        Expected("state", None, "bad_state", parameter="0.weight.exp_avg_sq"),
        ("outside", "silent", "inf_first"),
        watched=Expected("state", None, "bad_state", parameter="0.weight.exp_avg_sq", says=("optimizer",)),
    ),
    Fault(
        "rate_outside_is_undefined",
        "mlcommons/hpc#27",
        rate_outside_is_undefined,
        Expected("state", None, "bad_state", parameter="weight"),
        ("outside", "inf_first"),
        watched=Expected("state", None, "bad_state", parameter="weight", says=("optimizer",)),
    ),
    Fault("healthy_trainer", "huggingface/transformers#34754", healthy_trainer, None, ("outside",)),
    Fault(
        "forced_weight_norm",
        "google/flax#1671",
        forced_weight_norm,
        Expected("optimizer", "invalid", "out_of_domain", "div", parameter="0.weight", at_origin=True),
        ("written_after",),
    ),
    Fault(
        "pruned_by_a_quantile",
        "huggingface/peft#3486",
        pruned_by_a_quantile,
        Expected("optimizer", "invalid", ..., "div", parameter="2.weight", at_origin=True),
        ("written_after",),
    ),
    Fault(
        "average_is_swapped_in",
        "ultralytics/ultralytics#24731",
        average_is_swapped_in,
        Expected(..., "overflow", "overflow", at_origin=True),
        ("written_after", "float16", "inf_first"),
    ),
    Fault(
        "projected_gradient",
        "WeiChengTseng/Pytorch-PCGrad#7",
        projected_gradient,
        Expected("clip", "invalid", "out_of_domain", "div", at_origin=True),
        ("gradient",),
    ),
    Fault("healthy_renormalised", "pytorch/pytorch#19126", healthy_renormalised, None, ("written_after",)),
)
