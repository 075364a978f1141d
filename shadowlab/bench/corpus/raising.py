"""Steps that end in an exception because of a NaN: validation, decompositions, assertions, the loop's own checks."""

import math
import sys
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def policy_of_unseen_observations() -> Scene:
    """PPO: observations are standardised by a running deviation that is still zero; the Categorical refuses the NaN."""
    torch.manual_seed(0)

    class Policy(nn.Module):
        mean: Tensor
        variance: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.value = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)
            self.register_buffer("mean", torch.zeros(6))
            self.register_buffer("variance", torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]))

        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            seen = (observation - self.mean) / self.variance.sqrt()  # origin
            hidden = self.body(seen).tanh()
            return self.head(hidden), self.value(hidden).squeeze(-1)

    model = Policy()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, eps=1e-5)
    batch = {
        "observations": torch.randn(5, 6),
        "actions": torch.tensor([0, 2, 1, 1, 0]),
        "advantages": torch.randn(5),
        "returns": torch.randn(5),
        "old_log_probs": torch.full((5,), -1.1),
    }
    batch["observations"][:, 2] = 0.0  # a sensor that has not moved yet

    def compute_loss() -> Tensor:
        logits, value = model(batch["observations"])
        policy = torch.distributions.Categorical(logits=logits, validate_args=True)
        ratio = (policy.log_prob(batch["actions"]) - batch["old_log_probs"]).exp()
        clipped = ratio.clamp(0.8, 1.2) * batch["advantages"]
        gain = torch.min(ratio * batch["advantages"], clipped).mean()
        return F.mse_loss(value, batch["returns"]) - gain - 0.01 * policy.entropy().mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch, raises=ValueError)


def scheduled_sampling() -> Scene:
    """A captioner feeds back a word drawn from its own distribution, whose logits overflowed for one picture."""
    torch.manual_seed(1)

    class Captioner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.cell, self.out = nn.Embedding(7, 8), nn.GRUCell(8, 8), nn.Linear(8, 7)

        def forward(self, features: Tensor, captions: Tensor) -> Tensor:
            hidden, word, steps = features, captions[:, 0], []
            for i in range(3):
                hidden = self.cell(self.words(word), hidden)
                odds = (self.out(hidden) * features.norm(dim=-1, keepdim=True)).exp()  # origin
                likely = odds / odds.sum(-1, keepdim=True)
                steps.append(likely)
                drawn = torch.multinomial(likely.detach(), 1).squeeze(-1)
                word = torch.where(torch.rand(len(word)) < 0.25, drawn, captions[:, i])
            return torch.stack(steps, 1)

    model = Captioner()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    batch: dict[str, Any] = {
        "features": torch.randn(4, 8),
        "captions": torch.randint(7, (4, 4)),
        "file": ["a", "b", "c", "d"],
    }
    batch["features"][2] *= 3e3

    def compute_loss() -> Tensor:
        likely = model(batch["features"], batch["captions"])
        return F.nll_loss((likely + 1e-9).log().flatten(0, 1), batch["captions"][:, 1:].flatten())

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch, raises=RuntimeError)


def gaussian_process() -> Scene:
    """A Gaussian process on a deep kernel: the targets' logarithm is NaN, and so is the lengthscale made from them."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = {"x": torch.randn(6, 3), "y": torch.tensor([1.0, 2.0, 0.5, -0.25, 1.5, 3.0])}

    def compute_loss() -> Tensor:
        points = model(batch["x"])
        target = batch["y"].log()  # origin
        width = target.std()
        kernel = torch.exp(-torch.cdist(points, points).pow(2) / width) + 0.1 * torch.eye(6)
        root = torch.linalg.cholesky(kernel)
        solved = torch.cholesky_solve(target[:, None], root)
        return 0.5 * (target @ solved).squeeze() + root.diagonal().log().sum()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch, raises=RuntimeError)


def counted_in_whole_numbers() -> Scene:
    """A fitting loop adds up its losses as int(loss); a joint that no camera saw was projected with depth zero."""
    torch.manual_seed(3)
    model = nn.Linear(5, 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = {"pose": torch.randn(4, 5), "joints": torch.randn(4, 3, 2), "depth": torch.ones(4, 3, 1)}
    with torch.no_grad():
        model.weight[3:6].zero_()
        model.bias[3:6].zero_()
    batch["depth"][1, 1] = 0
    report = {"reprojection": 0}

    def compute_loss() -> Tensor:
        joints = model(batch["pose"]).reshape(4, 3, 3)
        projected = joints[..., :2] / batch["depth"]  # origin
        loss = (projected - batch["joints"]).pow(2).mean()
        report["reprojection"] += int(loss.detach())
        return loss

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch, raises=ValueError)


class _Detector(nn.Module):
    """Two queries a picture, each a class and a box (centre, size)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.classes, self.boxes = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(8, 8)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.backbone(images).relu()
        return self.classes(hidden).reshape(-1, 2, 3), self.boxes(hidden).reshape(-1, 2, 4)


def matching_of_boxes() -> Scene:
    """DETR: the union of two boxes without area is zero; the Hungarian matcher refuses the cost matrix."""
    torch.manual_seed(4)
    model = _Detector()
    nn.init.zeros_(model.boxes.weight)
    nn.init.zeros_(model.boxes.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = {"images": torch.randn(3, 8), "boxes": torch.rand(3, 2, 4) + 0.1, "classes": torch.randint(3, (3, 2))}
    batch["boxes"][1, 0, 2:] = 0  # a box that a click without a drag left behind

    def overlap(predicted: Tensor, wanted: Tensor) -> Tensor:
        area = [box[..., 2] * box[..., 3] for box in (predicted, wanted)]
        low = torch.maximum(predicted[..., :2] - predicted[..., 2:] / 2, wanted[..., :2] - wanted[..., 2:] / 2)
        high = torch.minimum(predicted[..., :2] + predicted[..., 2:] / 2, wanted[..., :2] + wanted[..., 2:] / 2)
        shared = (high - low).clamp(min=0).prod(-1)
        return shared / (area[0] + area[1] - shared)  # origin

    def compute_loss() -> Tensor:
        logits, boxes = model(batch["images"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["classes"].flatten())
        for i in range(3):
            cost = 1 - overlap(boxes[i][:, None], batch["boxes"][i][None])
            rows, columns = linear_sum_assignment(cost.detach().numpy())
            loss = loss + cost[rows, columns].mean()
        return loss

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch, raises=ValueError)


def training_stops_itself() -> Scene:
    """The loop looks at the loss and leaves the process: sys.exit is no Exception, but a NaN is behind it."""
    torch.manual_seed(5)
    model = _Detector().half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    batch = {"images": torch.randn(4, 8), "classes": torch.randint(3, (4, 2))}
    batch["images"][3] = 3e4

    def compute_loss() -> Tensor:
        logits, boxes = model(batch["images"].half())
        weights = {"classes": 1.0, "boxes": 5.0}
        losses = {
            "classes": F.cross_entropy(logits.float().flatten(0, 1), batch["classes"].flatten()),
            "boxes": boxes.float().abs().mean(),
        }
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        if not math.isfinite(loss.item()):
            sys.exit(1)
        return loss

    with torch.no_grad():
        model.backbone.weight.fill_(1.0)
    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch, raises=SystemExit)


def boxes_are_asserted() -> Scene:
    """An assertion on corners fails, for NaN is not greater than anything: sides relative to the longest are 0/0."""
    torch.manual_seed(6)

    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 4)
            nn.init.constant_(self.head.weight, 0.1)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            sides = self.head(x).relu()
            return sides / sides.amax(-1, keepdim=True)  # origin

    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Boxes())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    nn.init.eye_(model.get_parameter("0.weight"))
    nn.init.zeros_(model.get_parameter("0.bias"))
    batch = {"images": torch.rand(3, 8), "boxes": torch.rand(3, 4)}
    batch["images"][2] = 0  # a black picture

    def compute_loss() -> Tensor:
        sides = model(batch["images"])
        corners = torch.cat([-sides[:, :2], sides[:, 2:]], -1)
        assert (corners[:, 2:] >= corners[:, :2]).all()
        return F.l1_loss(corners, batch["boxes"])

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch, raises=AssertionError)


def clipping_that_refuses() -> Scene:
    """clip_grad_norm_(error_if_nonfinite=True) raises: a distance of two equal points has an infinite slope."""
    torch.manual_seed(7)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"anchor": torch.randn(5, 6), "positive": torch.randn(5, 6)}
    batch["positive"][3] = batch["anchor"][3]

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        apart = (model(batch["anchor"]) - model(batch["positive"])).pow(2).sum(-1)
        loss = apart.sqrt().mean()  # origin
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch, raises=RuntimeError)


def the_loop_raises() -> Scene:
    """fairseq's way: the loop looks at the gradient norm and raises FloatingPointError itself, before the update."""
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(6, 6), nn.Softplus())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"source": torch.randn(4, 6), "target": torch.rand(4, 6), "id": torch.tensor([812, 33, 1290, 7])}
    nn.init.eye_(model.get_parameter("0.weight"))
    batch["source"][0] = -300

    def step() -> Tensor:
        optimizer.zero_grad()
        rate = model(batch["source"])
        loss = (rate - batch["target"] * rate.log()).sum()  # origin
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        if not torch.isfinite(norm):
            raise FloatingPointError("gradients are Nan/Inf")
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch, raises=FloatingPointError)


def _born(
    phase: str, exception: str, cause: str, op: object = ..., module: object = ..., samples: object = ...
) -> Expected:
    return Expected(phase, exception, cause, op, module, samples=samples, at_origin=True)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "policy_of_unseen_observations",
        "thu-ml/tianshou#823",
        policy_of_unseen_observations,
        _born("forward", "invalid", "out_of_domain", "div", "", (0, 1, 2, 3, 4)),
        ("raises", "buffer"),
    ),
    Fault(
        "scheduled_sampling",
        "YehLi/xmodaler#48",
        scheduled_sampling,
        Expected("forward", "overflow", "overflow", "exp", "", samples=(2,), sample_ids=("c",), at_origin=True),
        ("raises", "inf_first"),
    ),
    Fault(
        "gaussian_process",
        "cornellius-gp/gpytorch#1747",
        gaussian_process,
        _born("loss", "invalid", "out_of_domain", "log", samples=(3,)),
        ("raises",),
    ),
    Fault(
        "counted_in_whole_numbers",
        "boycehbz/DMMR#8",
        counted_in_whole_numbers,
        _born("loss", "invalid", "out_of_domain", "div", samples=(1,)),
        ("raises",),
    ),
    Fault(
        "matching_of_boxes",
        "Sompote/SAM3_LoRA#34",
        matching_of_boxes,
        _born("loss", "invalid", "out_of_domain", "div"),
        ("raises",),
    ),
    Fault(
        "training_stops_itself",
        "Intellindust-AI-Lab/DEIM#96",
        training_stops_itself,
        Expected("forward", "overflow", "overflow", module="backbone", samples=(3,)),
        ("raises", "float16", "inf_first"),
    ),
    Fault(
        "boxes_are_asserted",
        "facebookresearch/detr#509",
        boxes_are_asserted,
        _born("forward", "invalid", "out_of_domain", "div", "2", (2,)),
        ("raises",),
    ),
    Fault(
        "clipping_that_refuses",
        "pytorch/pytorch#46849",
        clipping_that_refuses,
        _born("backward", "divide_by_zero", "out_of_domain", samples=(3,)),
        ("raises", "inf_first"),
    ),
    Fault(
        "the_loop_raises",
        "facebookresearch/fairseq#4118",
        the_loop_raises,
        Expected("loss", "divide_by_zero", "underflow", "log", samples=(0,), sample_ids=("812",), at_origin=True),
        ("raises", "inf_first"),
    ),
)
