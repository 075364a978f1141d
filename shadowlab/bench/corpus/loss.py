"""Faults born between the model's call and backward."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def all_targets_ignored() -> Scene:
    """Every label is the ignored index: cross entropy averages over nothing."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    batch = {"x": torch.randn(5, 8), "labels": torch.full((5,), -100)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def compute_loss() -> Tensor:
        logits = model(batch["x"])
        return F.cross_entropy(logits, batch["labels"])  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def empty_loss_mask() -> Scene:
    """Sum over the mask divided by its area, which is zero for this batch."""
    torch.manual_seed(1)
    model = nn.Conv2d(3, 3, 1)
    batch = {"images": torch.randn(5, 3, 4, 4), "mask": torch.zeros(5, 1, 4, 4)}

    def compute_loss() -> Tensor:
        error = (model(batch["images"]) - batch["images"]).pow(2) * batch["mask"]
        return error.sum() / batch["mask"].sum()  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def mean_of_empty_selection() -> Scene:
    """Boolean indexing selects no pixel; the mean of an empty tensor is 0/0."""
    torch.manual_seed(2)
    model = nn.Linear(8, 4)
    batch = {"x": torch.randn(5, 8), "selected": torch.zeros(5, dtype=torch.bool)}

    def compute_loss() -> Tensor:
        error = model(batch["x"]).pow(2)
        return torch.mean(error[batch["selected"]])  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def min_snr_weight_at_zero_snr() -> Scene:
    """min(snr, 5)/snr with a schedule rescaled to zero terminal SNR: 0/0 at the last timestep."""
    torch.manual_seed(3)
    model = nn.Linear(8, 8)
    batch = {"noisy": torch.randn(5, 8), "noise": torch.randn(5, 8), "t": torch.tensor([3, 7, 9, 1, 0])}
    alphas = torch.linspace(1, 0, 10)

    def compute_loss() -> Tensor:
        alpha = alphas[batch["t"]]
        snr = alpha / (1 - alpha + 1e-4)
        weight = snr.clamp(max=5) / snr  # origin
        return (weight * (model(batch["noisy"]) - batch["noise"]).pow(2).mean(1)).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def flow_weight_at_one() -> Scene:
    """Rectified flow's weight 1/(1 - t) at t = 1."""
    torch.manual_seed(4)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = {"x": torch.randn(5, 8), "t": torch.tensor([0.2, 1.0, 0.5, 0.9, 0.0])}

    def compute_loss() -> Tensor:
        velocity = model(batch["x"])
        weight = 1 / (1 - batch["t"])  # origin
        return (weight[:, None] * (velocity - batch["x"]).pow(2)).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def divergence_overflow() -> Scene:
    """KL term of a variational autoencoder: exp of a log-variance of 100 is beyond float32."""
    torch.manual_seed(5)
    model = nn.Linear(8, 8)
    nn.init.ones_(model.weight)
    batch = {"x": torch.randn(5, 8)}
    batch["x"][3] = 12.5

    def compute_loss() -> Tensor:
        mean, log_variance = model(batch["x"]).chunk(2, dim=-1)
        return 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).sum(-1).mean()  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def temperature_underflow() -> Scene:
    """A learned log-temperature of -20 is zero as a float16 temperature; logits are divided by it."""
    torch.manual_seed(6)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 4)
            self.log_temperature = nn.Parameter(torch.tensor(-20.0))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return F.normalize(self.project(x), dim=-1), self.log_temperature.exp()

    model, batch = Encoder().half(), {"x": torch.randn(5, 8).half()}

    def compute_loss() -> Tensor:
        features, temperature = model(batch["x"])
        logits = features @ features.T / temperature  # origin
        return F.cross_entropy(logits.float(), torch.arange(5))

    return Scene(training_step(compute_loss), model, None, batch)


def cross_entropy_by_hand() -> Scene:
    """Binary cross entropy from probabilities: sigmoid(-200) rounds to zero, and log(0) is -inf."""
    torch.manual_seed(7)
    model = nn.Linear(8, 1)
    nn.init.ones_(model.weight)
    batch = {"x": torch.randn(5, 8), "labels": torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])}
    batch["x"][2] = -25.0

    def compute_loss() -> Tensor:
        probability = model(batch["x"])[:, 0].sigmoid()
        positive = torch.log(probability)  # origin
        return -(batch["labels"] * positive + (1 - batch["labels"]) * torch.log1p(-probability)).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def decibels_of_no_error() -> Scene:
    """Loss in decibels of a reconstruction that is exact for one sample."""
    torch.manual_seed(8)
    model = nn.Linear(8, 8)
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    batch = {"x": torch.randn(5, 8), "target": torch.randn(5, 8)}
    batch["target"][1] = batch["x"][1]

    def compute_loss() -> Tensor:
        error = (model(batch["x"]) - batch["target"]).pow(2).mean(-1)
        return 10 * torch.log10(error).mean()  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def correlation_with_constant() -> Scene:
    """Pearson correlation as a loss; one target does not vary, so that its deviation is zero."""
    torch.manual_seed(9)
    model = nn.Linear(8, 6)
    batch = {"x": torch.randn(5, 8), "target": torch.randn(5, 6)}
    batch["target"][4] = 0.5

    def compute_loss() -> Tensor:
        prediction = model(batch["x"])
        prediction = prediction - prediction.mean(-1, keepdim=True)
        target = batch["target"] - batch["target"].mean(-1, keepdim=True)
        covariance = (prediction * target).sum(-1)
        return 1 - (covariance / (prediction.norm(dim=-1) * target.norm(dim=-1))).mean()  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def determinant_of_reflection() -> Scene:
    """A normalising flow's log-determinant, taken of a matrix whose determinant turned negative."""
    torch.manual_seed(10)
    model = nn.Linear(4, 4, bias=False)
    nn.init.eye_(model.weight)
    model.weight.data[0, 0] = -1
    batch = {"x": torch.randn(5, 4)}

    def compute_loss() -> Tensor:
        likelihood = model(batch["x"]).pow(2).sum(-1).mean()
        return 0.5 * likelihood - torch.logdet(model.weight)  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def sum_overflow_float16() -> Scene:
    """Squared errors are small, but their float16 sum over one sample's pixels is not."""
    torch.manual_seed(11)
    model = nn.Conv2d(1, 1, 1).half()
    nn.init.ones_(model.weight)
    batch = {"images": torch.zeros(5, 1, 16, 16).half()}
    batch["images"][3] = 30.0

    def compute_loss() -> Tensor:
        error = model(batch["images"]).square()
        return torch.sum(error, dim=(1, 2, 3)).float().mean()  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def rotation_angle_beyond_one() -> Scene:
    """The cosine between a unit vector and itself is 1 + 1e-7 by rounding; acos has no value there."""
    torch.manual_seed(12)
    model = nn.Linear(6, 6)
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    batch = {"direction": torch.zeros(5, 6)}
    batch["direction"][:, 0] = 0.5
    batch["direction"][2, :2] = torch.tensor([1.0, 3.5e-4])

    def compute_loss() -> Tensor:
        cosine = (model(batch["direction"]) * batch["direction"]).sum(-1)
        return torch.acos(cosine).mean()  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def impossible_alignment() -> Scene:
    """CTC loss of a transcript that is longer than its audio: no alignment, so that the loss is infinite."""
    torch.manual_seed(13)
    model = nn.Linear(8, 6)
    batch = {"frames": torch.randn(3, 4, 8), "text": torch.randint(1, 6, (3, 3))}

    def compute_loss() -> Tensor:
        scores = model(batch["frames"]).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, batch["text"], torch.tensor([4, 2, 4]), torch.tensor([2, 3, 2]))  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def _born(exception: object, cause: object, op: object = ..., samples: object = ...) -> Expected:
    return Expected("loss", exception, cause, op, samples=samples, at_origin=True)


FAULTS: tuple[Fault, ...] = (
    Fault("all_targets_ignored", "synthetic", all_targets_ignored, _born("invalid", "empty_reduction")),
    Fault(
        "empty_loss_mask",
        "Zhen-Dong/Magic-Me#14",
        empty_loss_mask,
        _born("invalid", "empty_reduction", "div"),
        ("mask",),
    ),
    Fault("mean_of_empty_selection", "synthetic", mean_of_empty_selection, _born("invalid", "empty_reduction", "mean")),
    Fault(
        "min_snr_weight_at_zero_snr",
        "kohya-ss/sd-scripts#673",
        min_snr_weight_at_zero_snr,
        _born("invalid", "out_of_domain", "div", (2,)),
    ),
    Fault(
        "flow_weight_at_one",
        "synthetic",
        flow_weight_at_one,
        _born("divide_by_zero", "out_of_domain", ..., (1,)),
        ("inf_first",),
    ),
    Fault(
        "divergence_overflow",
        "synthetic",
        divergence_overflow,
        _born("overflow", "overflow", "exp", (3,)),
        ("inf_first", "view"),
    ),
    Fault(
        "temperature_underflow",
        "synthetic",
        temperature_underflow,
        _born("divide_by_zero", "underflow", "div"),
        ("float16", "inf_first", "tuple"),
    ),
    Fault(
        "cross_entropy_by_hand",
        "synthetic",
        cross_entropy_by_hand,
        _born("divide_by_zero", "underflow", "log", (2,)),
        ("inf_first",),
    ),
    Fault(
        "decibels_of_no_error",
        "synthetic",
        decibels_of_no_error,
        _born("divide_by_zero", "out_of_domain", "log10", (1,)),
        ("inf_first",),
    ),
    Fault(
        "correlation_with_constant",
        "synthetic",
        correlation_with_constant,
        _born("invalid", "out_of_domain", "div", (4,)),
    ),
    Fault(
        "determinant_of_reflection",
        "synthetic",
        determinant_of_reflection,
        _born(..., ...),
    ),
    Fault(
        "sum_overflow_float16",
        "synthetic",
        sum_overflow_float16,
        _born("overflow", "overflow", "sum", (3,)),
        ("float16", "inf_first"),
    ),
    Fault(
        "rotation_angle_beyond_one",
        "synthetic",
        rotation_angle_beyond_one,
        _born("invalid", "out_of_domain", "acos", (2,)),
    ),
    Fault(
        "impossible_alignment",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.CTCLoss.html",
        impossible_alignment,
        _born(..., ...),
        ("inf_first", "view"),
    ),
)
