"""float8: scales of rows without a largest value, and gradients beyond its range."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def scale_of_an_empty_row() -> Scene:
    """float8 with a scale a row: a row of zeros has no largest value, and the scale is 448/0."""
    torch.manual_seed(6)

    class Linear8(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            largest = x.detach().abs().amax(-1, keepdim=True)
            scale = torch.finfo(torch.float8_e4m3fn).max / largest  # origin
            rounded = (x * scale).to(torch.float8_e4m3fn).float() / scale
            return F.linear(x + (rounded - x).detach(), self.weight)

    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Linear8())
    nn.init.constant_(model.get_parameter("0.weight"), 1.0)
    nn.init.zeros_(model.get_parameter("0.bias"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"tokens": torch.rand(4, 6)}
    batch["tokens"][1] *= -1
    return Scene(training_step(lambda: model(batch["tokens"]).pow(2).mean(), optimizer), model, optimizer, batch)


def gradient_beyond_float8() -> Scene:
    """A straight-through layer sends its gradient through float8_e5m2, whose largest value is 57344."""
    torch.manual_seed(7)

    class ThroughFloat8(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            return gradients[0].to(torch.float8_e5m2).float()

    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"x": torch.randn(4, 6), "weight": torch.tensor([1.0, 1.0, 1e6, 1.0])}

    def compute_loss() -> Tensor:
        hidden = ThroughFloat8.apply(model[0](batch["x"]))  # origin
        return (model[1](hidden).sum(-1) * batch["weight"]).sum()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "scale_of_an_empty_row",
        "pytorch/ao#3356",
        scale_of_an_empty_row,
        Expected("forward", "divide_by_zero", "out_of_domain", ..., "2", samples=(1,), at_origin=True),
        ("float8", "inf_first"),
    ),
    Fault(
        "gradient_beyond_float8",
        "onnx/onnx#4805",
        gradient_beyond_float8,
        Expected("backward", "overflow", "overflow", samples=(2,), says=("float8_e5m2",), at_origin=True),
        ("float8", "inf_first"),
    ),
)
