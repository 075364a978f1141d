"""Averages over nothing, in the ways in which people write them, and zeros that are none."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.processes import one_process
from shadowlab.bench.corpus.steps import training_step


def count_of_all_processes() -> Scene:
    """Tokens to predict are counted over all processes by all_reduce; there is none in this batch: 0/0."""
    torch.manual_seed(0)
    one_process()
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"input_ids": torch.randint(9, (3, 5)), "labels": torch.full((3, 5), -100)}

    def compute_loss() -> Tensor:
        logits = model(batch["input_ids"]).flatten(0, 1)
        losses = F.cross_entropy(logits, batch["labels"].flatten(), reduction="none")
        num_items = (batch["labels"] != -100).sum()
        dist.all_reduce(num_items)
        return losses.sum() / num_items  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def variance_of_one_by_hand() -> Scene:
    """Batch norm written out: the squares of a single sample are divided by n - 1."""
    torch.manual_seed(1)

    class BatchNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            centred = x - x.mean(0, keepdim=True)
            variance = centred.pow(2).sum(0, keepdim=True) / (len(x) - 1)  # origin
            return centred / (variance + 1e-5).sqrt()

    model = nn.Sequential(nn.Linear(6, 8), BatchNorm(), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(1, 6), "y": torch.tensor([1])}
    step = training_step(lambda: F.cross_entropy(model(batch["x"]), batch["y"]), optimizer)
    return Scene(step, model, optimizer, batch)


def covariance_of_one() -> Scene:
    """Correlation alignment on the last batch of an epoch, which holds one sample: torch.cov of one observation."""
    torch.manual_seed(2)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"source": torch.randn(1, 6), "target": torch.randn(1, 6)}

    def compute_loss() -> Tensor:
        both = [model(batch[name]) for name in ("source", "target")]
        first, second = (torch.cov(features.T) for features in both)  # origin
        return (first - second).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def boxes_of_no_object() -> Scene:
    """A detector's box loss on the anchors that hold an object, of which this picture has none."""
    torch.manual_seed(3)
    model = nn.ModuleDict({"trunk": nn.Linear(8, 8), "boxes": nn.Linear(8, 4), "objects": nn.Linear(8, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batch = {"anchors": torch.randn(2, 6, 8), "boxes": torch.rand(2, 6, 4), "is_object": torch.zeros(2, 6)}

    def compute_loss() -> Tensor:
        hidden = model["trunk"](batch["anchors"]).relu()
        found = batch["is_object"] > 0
        located = F.smooth_l1_loss(model["boxes"](hidden)[found], batch["boxes"][found])  # origin
        seen = F.binary_cross_entropy_with_logits(model["objects"](hidden)[..., 0], batch["is_object"])
        return seen + 0.5 * located

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def error_of_nothing() -> Scene:
    """mse_loss of the frames that are voiced, and no frame is: an average of an empty tensor."""
    torch.manual_seed(4)
    model = nn.GRU(3, 4, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"frames": torch.randn(2, 5, 3), "pitch": torch.zeros(2, 5)}

    def compute_loss() -> Tensor:
        predicted = model(batch["frames"])[0].mean(-1)
        voiced = batch["pitch"] > 0
        return F.mse_loss(predicted[voiced], batch["pitch"][voiced].log())  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def advantage_of_one() -> Scene:
    """PPO's last minibatch has one transition: the deviation of one advantage is NaN."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    batch = {"observations": torch.randn(1, 4), "actions": torch.tensor([1]), "advantages": torch.randn(1)}

    def compute_loss() -> Tensor:
        gains = batch["advantages"]
        gains = (gains - gains.mean()) / (gains.std() + 1e-8)  # origin
        log_probabilities = F.log_softmax(model(batch["observations"]), -1)
        return -(log_probabilities[range(1), batch["actions"]] * gains).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def running_variance_of_one_value() -> Scene:
    """A batch norm that sees one value a channel: its output is finite, its running variance is not."""
    torch.manual_seed(6)

    class Norm(nn.Module):
        mean: Tensor
        variance: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
            self.register_buffer("mean", torch.zeros(6))
            self.register_buffer("variance", torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.batch_norm(
                x, self.weight, self.bias, self.mean, self.variance, True, 0.1, 1e-5, False
            )  # origin

    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), Norm(), nn.Flatten(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"images": torch.randn(1, 3, 4, 4), "labels": torch.tensor([0])}
    step = training_step(lambda: F.cross_entropy(model(batch["images"]), batch["labels"]), optimizer)
    return Scene(step, model, optimizer, batch)


def weights_that_cancel() -> Scene:
    """Signed weights are divided by their sum, and one document's weights sum to zero: data, and no empty average."""
    torch.manual_seed(7)
    model = nn.Embedding(8, 4)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    batch = {"words": torch.randint(8, (4, 3)), "weights": torch.rand(4, 3)}
    batch["weights"][2] = torch.tensor([0.5, -0.75, 0.25])

    def compute_loss() -> Tensor:
        share = batch["weights"] / batch["weights"].sum(-1, keepdim=True)  # origin
        return (model(batch["words"]) * share[..., None]).sum(1).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def silent_recording() -> Scene:
    """A waveform over its peak: the recording is silent, its samples are real data that are zero."""
    torch.manual_seed(8)
    model = nn.Conv1d(1, 2, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch: dict[str, Any] = {"noisy": torch.randn(3, 1, 12), "file": ["p226_001", "p226_002", "p226_003"]}
    batch["noisy"][1] = 0

    def compute_loss() -> Tensor:
        wave = batch["noisy"]
        wave = wave / wave.abs().sum(-1, keepdim=True)  # origin
        return model(wave).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def healthy_averages() -> Scene:
    """Benign: averages over nothing that are guarded, each in the way of its author, next to an unguarded full one."""
    torch.manual_seed(9)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"x": torch.randn(3, 6), "mask": torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])}
    labels = torch.full((3,), -100)

    def compute_loss() -> Tensor:
        predicted = model(batch["x"])
        counts = batch["mask"].sum(1)
        averages = torch.where(counts > 0, (predicted[:, :3] * batch["mask"]).sum(1) / counts.clamp(min=1), 0.0)
        classes = F.cross_entropy(predicted, labels, reduction="sum") / max(1, int((labels != -100).sum()))
        nothing = predicted[predicted > 1e6]
        return averages.mean() + classes + (nothing.mean() if len(nothing) else predicted.sum() * 0.0)

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def _empty(phase: str, op: object = ..., module: object = ..., says: tuple[str, ...] = ()) -> Expected:
    return Expected(phase, "invalid", "empty_reduction", op, module, samples=(), says=says, at_origin=True)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "count_of_all_processes",
        "allenai/OLMo-core#452",
        count_of_all_processes,
        _empty("loss", "div", says=("num_items",)),
        ("empty", "collective"),
    ),
    Fault(
        "variance_of_one_by_hand",
        "karpathy/makemore#22",
        variance_of_one_by_hand,
        Expected("forward", "invalid", "empty_reduction", "div", "1", at_origin=True),
        ("empty",),
    ),
    Fault(
        "covariance_of_one",
        "pmorerio/minimal-entropy-correlation-alignment#5",
        covariance_of_one,
        Expected("loss", "invalid", "empty_reduction", at_origin=True),
        ("empty", "library"),
    ),
    Fault("boxes_of_no_object", "zhang-tao-whu/e2ec#7", boxes_of_no_object, _empty("loss"), ("empty", "mask")),
    Fault("error_of_nothing", "NVIDIA-BioNeMo/bionemo-recipes#958", error_of_nothing, _empty("loss"), ("empty",)),
    Fault(
        "advantage_of_one",
        "DLR-RM/stable-baselines3#325",
        advantage_of_one,
        Expected(..., "invalid", "empty_reduction", "std", at_origin=True),
        ("empty",),
    ),
    Fault(
        "running_variance_of_one_value",
        "pytorch/pytorch#1381",
        running_variance_of_one_value,
        Expected("forward", "invalid", "empty_reduction", module="2", parameter="2.variance"),
        ("empty", "kernel?", "silent", "buffer"),
    ),
    Fault(
        "weights_that_cancel",
        "pytorch/pytorch#3264",
        weights_that_cancel,
        Expected(..., "divide_by_zero", "out_of_domain", "div", samples=(2,), at_origin=True),
        ("inf_first",),
    ),
    Fault(
        "silent_recording",
        "yxlu-0102/MP-SENet#33",
        silent_recording,
        Expected("data", "invalid", "out_of_domain", "div", samples=(1,), sample_ids=("p226_002",), at_origin=True),
    ),
    Fault("healthy_averages", "keras-team/keras#11643", healthy_averages, None, ("empty", "where")),
)
