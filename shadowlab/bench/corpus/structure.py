"""Faults in every phase, in the forms that ordinary code takes: checkpointing, views, in-place, several models."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def _checkpointed_root(use_reentrant: bool, inner: nn.Module) -> Scene:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(8, 6, bias=False), inner, nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.block, self.stem(x), use_reentrant=use_reentrant))

    model, batch = Net(), {"x": torch.rand(5, 8)}
    nn.init.ones_(model.stem.weight)
    batch["x"][2] = 0
    batch["x"][3] = 12.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Scene(training_step(lambda: model(batch["x"]).abs().mean(), optimizer), model, optimizer, batch)


def checkpointed_overflow() -> Scene:
    """A checkpointed block overflows in forward; backward repeats it."""

    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x)  # origin

    return _checkpointed_root(False, Exponential())


def checkpointed_overflow_reentrant() -> Scene:
    """The same with reentrant checkpointing, whose first forward keeps no graph."""

    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x)  # origin

    return _checkpointed_root(True, Exponential())


def checkpointed_root_at_zero() -> Scene:
    """A checkpointed square root at zero: finite in both forwards, infinite in backward."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)  # origin

    return _checkpointed_root(False, Root())


def checkpointed_root_at_zero_reentrant() -> Scene:
    """The same with reentrant checkpointing: a backward inside backward."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)  # origin

    return _checkpointed_root(True, Root())


def in_place_division() -> Scene:
    """An in-place normalisation by the row's maximum, which is zero for one sample."""
    torch.manual_seed(1)

    class Peak(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.abs()
            return x.div_(x.amax(-1, keepdim=True).detach())  # origin

    model, batch = nn.Sequential(nn.Linear(8, 6, bias=False), Peak(), nn.Linear(6, 4)), {"x": torch.randn(5, 8)}
    batch["x"][4] = 0
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def logarithm_through_view() -> Scene:
    """Part of a tensor is overwritten through a view; the whole tensor is read afterwards, in another module."""
    torch.manual_seed(2)

    class LogPart(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            part = x[:, 2:4]
            part.abs_().log_()  # origin
            return x

    model, batch = nn.Sequential(LogPart(), nn.Tanhshrink(), nn.Linear(8, 4)), {"x": torch.randn(5, 8)}
    batch["x"][1, 3] = 0
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def division_into_buffer() -> Scene:
    """Inputs are scaled into a buffer that is kept between steps (`out=`); one scale is zero."""
    torch.manual_seed(3)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8), "scale": torch.tensor([[1.0], [2.0], [3.0], [0.0], [5.0]])}
    scaled = torch.zeros(5, 8)

    def compute_loss() -> Tensor:
        with torch.no_grad():
            torch.div(batch["x"], batch["scale"], out=scaled)  # origin
        return model(scaled).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def accumulated_gradient_overflow() -> Scene:
    """Each micro-batch's float16 gradient is finite; the sum that `.grad` accumulates is not."""
    torch.manual_seed(4)
    model, batch = nn.Linear(8, 4, bias=False).half(), {"x": torch.full((6, 8), 1.5e4).half()}

    def step() -> Tensor:
        total = torch.zeros(())
        for x in batch["x"].split(3):
            loss = model(x).float().sum()
            loss.backward()
            total += loss.detach()
        return total

    return Scene(step, model, None, batch)


def tied_gradient_overflow() -> Scene:
    """Both uses of a tied float16 weight send back finite gradients; their sum overflows."""
    torch.manual_seed(5)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            nn.init.eye_(self.first.weight)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(x), self.second(x)

    model, batch = Tied().half(), {"x": torch.full((5, 8), 8e3).half()}

    def compute_loss() -> Tensor:
        first, second = model(batch["x"])
        return first.float().sum() + second.float().sum()

    return Scene(training_step(compute_loss), model, None, batch)


def saturated_discriminator() -> Scene:
    """Two models and two optimizers: the generator's loss is log(1 - D), and D is exactly 1 for one image."""
    torch.manual_seed(6)
    generator = nn.Linear(8, 8)
    discriminator = nn.Sequential(nn.Linear(8, 1), nn.Flatten(0), nn.Sigmoid())
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in (generator, discriminator)]
    nn.init.eye_(generator.weight)
    nn.init.ones_(discriminator.get_parameter("0.weight"))
    batch = {"latents": torch.randn(5, 8)}
    batch["latents"][2] = 20

    def step() -> Tensor:
        certainty = discriminator(generator(batch["latents"]))
        loss = torch.log(1 - certainty).mean()  # origin
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss

    return Scene(step, [generator, discriminator], optimizers, batch)


def overflow_in_selected_rows() -> Scene:
    """Indexed rows are replaced by their squares in bfloat16, which overflow; the others are untouched."""
    torch.manual_seed(7)

    class SquareSome(nn.Module):
        def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
            result = x.clone()
            result[chosen] = x[chosen] * x[chosen]  # origin
            return result

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square, self.norm = SquareSome(), nn.LayerNorm(8)

        def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
            return self.norm(self.square(x, chosen))

    model = Net().bfloat16()
    batch = {"x": torch.randn(5, 8).bfloat16(), "chosen": torch.tensor([False, True, False, False, True])}
    batch["x"][4] = 1e20
    step = training_step(lambda: (model(batch["x"], batch["chosen"]).float() - 1).pow(2).mean())
    return Scene(step, model, None, batch)


def recurrent_growth() -> Scene:
    """One module is called forty times; its state grows until float32 ends in one of the calls."""
    torch.manual_seed(8)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(4, 4, bias=False)
            nn.init.eye_(self.cell.weight)
            self.cell.weight.data.mul_(10)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(40):
                x = self.cell(x)  # origin
            return x

    model, batch = Recurrent(), {"x": torch.rand(5, 4) + 0.1}
    return Scene(training_step(lambda: F.softsign(model(batch["x"])).mean()), model, None, batch)


_OVERFLOW = Expected("forward", "overflow", "overflow", "exp", "block", samples=(3,), at_origin=True)
_ROOT = Expected("backward", "divide_by_zero", "out_of_domain", module="block", samples=(2,), at_origin=True)

FAULTS: tuple[Fault, ...] = (
    Fault("checkpointed_overflow", "synthetic", checkpointed_overflow, _OVERFLOW, ("checkpoint", "inf_first")),
    Fault(
        "checkpointed_overflow_reentrant",
        "synthetic",
        checkpointed_overflow_reentrant,
        _OVERFLOW,
        ("checkpoint", "inf_first"),
    ),
    Fault("checkpointed_root_at_zero", "synthetic", checkpointed_root_at_zero, _ROOT, ("checkpoint", "inf_first")),
    Fault(
        "checkpointed_root_at_zero_reentrant",
        "synthetic",
        checkpointed_root_at_zero_reentrant,
        _ROOT,
        ("checkpoint", "inf_first"),
    ),
    Fault(
        "in_place_division",
        "synthetic",
        in_place_division,
        Expected("forward", "invalid", "out_of_domain", module="1", samples=(4,), at_origin=True),
        ("in_place",),
    ),
    Fault(
        "logarithm_through_view",
        "synthetic",
        logarithm_through_view,
        Expected("forward", "divide_by_zero", "out_of_domain", module="0", samples=(1,), at_origin=True),
        ("in_place", "view", "far", "inf_first"),
    ),
    Fault(
        "division_into_buffer",
        "synthetic",
        division_into_buffer,
        Expected("data", "divide_by_zero", "out_of_domain", samples=(3,), at_origin=True),
        ("out", "inf_first"),
    ),
    Fault(
        "accumulated_gradient_overflow",
        "deepspeedai/DeepSpeed#8035",
        accumulated_gradient_overflow,
        Expected("backward", "overflow", "overflow", parameter="weight"),
        ("accumulation", "float16", "inf_first", "view"),
    ),
    Fault(
        "tied_gradient_overflow",
        "synthetic",
        tied_gradient_overflow,
        Expected("backward", "overflow", "overflow"),
        ("tied", "float16", "inf_first", "tuple"),
    ),
    Fault(
        "saturated_discriminator",
        "synthetic",
        saturated_discriminator,
        Expected("loss", "divide_by_zero", ..., "log", samples=(2,), at_origin=True),
        ("models", "inf_first"),
    ),
    Fault(
        "overflow_in_selected_rows",
        "synthetic",
        overflow_in_selected_rows,
        Expected("forward", "overflow", "overflow", "mul", "square", at_origin=True),
        ("bfloat16", "in_place", "far", "inf_first"),
    ),
    Fault(
        "recurrent_growth",
        "synthetic",
        recurrent_growth,
        Expected("forward", "overflow", "overflow", module="cell", at_origin=True),
        ("far", "inf_first"),
    ),
)
