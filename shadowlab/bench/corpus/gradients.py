"""Faults born in backward by kernels, hand-written gradients and the range of a number format."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


@torch.library.custom_op("faults::broken_gradient", mutates_args=())
def broken_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """A backward kernel that loses the rows whose sum passes 40, as one with a wrong log-sum-exp limit would."""
    return torch.where(x.sum(-1, keepdim=True) > 40, torch.nan, gradient)


@torch.library.custom_op("faults::fused_scale", mutates_args=())
def fused_scale(x: Tensor) -> Tensor:
    """An operator with a right forward and the broken backward."""
    return x * 1.0


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _broken(ctx: Any, gradient: Tensor) -> Tensor:
    return broken_gradient(gradient, *ctx.saved_tensors)


fused_scale.register_autograd(_broken, setup_context=_save)


def faulty_function_kernel() -> Scene:
    """A fused activation's backward kernel returns NaN for one row; everything it reads is finite."""
    torch.manual_seed(6)

    class FusedTanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return broken_gradient(gradient, *ctx.saved_tensors)

    class Activation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return FusedTanh.apply(x)  # origin

    scale = nn.Linear(8, 8, bias=False)
    nn.init.eye_(scale.weight)
    model, batch = nn.Sequential(scale, Activation(), nn.Linear(8, 4)), {"x": torch.rand(5, 8)}
    batch["x"][2] = 6
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def faulty_library_kernel() -> Scene:
    """As an attention library's backward: the operator is registered with the dispatcher, its gradient is NaN."""
    torch.manual_seed(7)

    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return fused_scale(x)  # origin

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale, self.outer = nn.Linear(8, 8, bias=False), Scale(), nn.Linear(8, 4)
            nn.init.eye_(self.inner.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.scale(self.inner(x)))

    model, batch = Block().bfloat16(), {"x": torch.rand(5, 8).bfloat16()}
    batch["x"][4] = 6
    step = training_step(lambda: model(batch["x"]).float().pow(2).mean())
    return Scene(step, model, None, batch)


def function_divides_by_zero() -> Scene:
    """A hand-written gradient of |x| divides x by |x|, which is 0/0 for a zero row."""
    torch.manual_seed(8)

    class Length(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            length = x.norm(dim=-1, keepdim=True)
            ctx.save_for_backward(x, length)
            return length

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            x, length = ctx.saved_tensors
            return gradient * (x / length)

    model, batch = nn.Linear(8, 6, bias=False), {"x": torch.randn(5, 8)}
    batch["x"][0] = 0

    def compute_loss() -> Tensor:
        length = Length.apply(model(batch["x"]))  # origin
        return (length - 1).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def gradient_cast_overflow() -> Scene:
    """A float32 loss sends 2e5 back through a cast to a float16 activation."""
    torch.manual_seed(10)
    model = nn.Linear(8, 4).half()
    nn.init.ones_(model.weight)
    batch = {"x": torch.rand(5, 8).half()}
    batch["x"][3] = 12

    def compute_loss() -> Tensor:
        output = model(batch["x"]).float()  # origin
        return 1000 * output.pow(2).sum()

    return Scene(training_step(compute_loss), model, None, batch)


def weight_gradient_overflow() -> Scene:
    """A float16 weight's gradient sums over the batch beyond 65504; activations and their gradients are moderate."""
    torch.manual_seed(11)

    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.linear.weight)  # origin

    model, batch = nn.Sequential(nn.Identity(), Projection()).half(), {"x": torch.full((5, 8), 2e4).half()}
    return Scene(training_step(lambda: model(batch["x"]).float().abs().sum()), model, None, batch)


def inverse_root_gradient_overflow() -> Scene:
    """rsqrt(1e-4) is 100, its gradient holds 100 cubed, which float16 does not."""
    torch.manual_seed(12)

    class Whiten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(8))

        def forward(self, power: Tensor) -> Tensor:
            return torch.rsqrt(self.gain * power)  # origin

    model, batch = Whiten().half(), {"power": torch.rand(5, 8).half() + 0.5}
    batch["power"][1, 2] = 1e-4
    return Scene(training_step(lambda: model(batch["power"]).float().sum()), model, None, batch)


def quotient_gradient_overflow() -> Scene:
    """error / variance is a finite 1e25, its gradient by the variance is 1e50."""
    torch.manual_seed(13)
    model = nn.Linear(8, 4)
    batch = {"x": torch.randn(5, 8), "target": torch.randn(5, 4)}
    log_variance = nn.Linear(8, 1)
    nn.init.ones_(log_variance.weight)
    batch["x"][2] = -7.2

    def compute_loss() -> Tensor:
        error = (model(batch["x"]) - batch["target"]).abs()
        likelihood = torch.div(error, log_variance(batch["x"]).exp())  # origin
        return likelihood.mean()

    return Scene(training_step(compute_loss), [model, log_variance], None, batch)


def gradient_hook() -> Scene:
    """A hook normalises a gradient by its largest entry; the loss of this batch has weight zero."""
    torch.manual_seed(15)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    batch = {"x": torch.randn(5, 8), "weight": torch.zeros(5, 1)}

    def compute_loss() -> Tensor:
        hidden = model[:2](batch["x"])
        hidden.register_hook(lambda gradient: gradient / gradient.abs().amax())
        return (batch["weight"] * model[2](hidden).pow(2)).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def _born(
    exception: object, cause: object, samples: object = ..., module: object = ..., at_origin: bool = True
) -> Expected:
    return Expected("backward", exception, cause, module=module, samples=samples, at_origin=at_origin)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "faulty_function_kernel",
        "THUDM/slime#2201",
        faulty_function_kernel,
        _born(None, "kernel", (2,), "1"),
        ("simulated", "function"),
    ),
    Fault(
        "faulty_library_kernel",
        "pytorch/pytorch#196678",
        faulty_library_kernel,
        _born(None, "kernel", (4,), "scale"),
        ("simulated", "bfloat16"),
    ),
    Fault(
        "function_divides_by_zero",
        "synthetic",
        function_divides_by_zero,
        _born("invalid", "out_of_domain", (0,)),
        ("function",),
    ),
    Fault(
        "gradient_cast_overflow",
        "synthetic",
        gradient_cast_overflow,
        _born("overflow", "overflow", (3,)),
        ("float16", "inf_first"),
    ),
    Fault(
        "weight_gradient_overflow",
        "synthetic",
        weight_gradient_overflow,
        _born("overflow", "overflow", ..., "1"),
        ("float16", "inf_first"),
    ),
    Fault(
        "inverse_root_gradient_overflow",
        "synthetic",
        inverse_root_gradient_overflow,
        _born("overflow", "overflow", (1,), ""),
        ("float16", "inf_first"),
    ),
    Fault(
        "quotient_gradient_overflow",
        "synthetic",
        quotient_gradient_overflow,
        _born("overflow", "overflow", (2,)),
        ("float32", "inf_first", "models"),
    ),
    Fault("gradient_hook", "synthetic", gradient_hook, _born("invalid", "out_of_domain", at_origin=False), ("hook",)),
)
