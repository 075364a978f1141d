"""The table of faults: each breaks by its own arithmetic, and must be named to the module, phase and samples.

Legend: B batch, N tokens, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diagnostics import NonFiniteFinding, locate_first_nonfinite

B, D = 3, 4


def locate(model: nn.Module, *inputs: Tensor, loss: Callable[[Tensor], Tensor] | None = None, **batch: Tensor):
    def forward_backward() -> Tensor:
        output = model(*inputs)
        value = output.float().square().mean() if loss is None else loss(output)
        value.mean().backward()
        return value.detach()

    return locate_first_nonfinite(model, forward_backward, batch=batch or None)


def facts(found: NonFiniteFinding | None) -> tuple[str, str, str, tuple[int, ...]]:
    assert found is not None
    return found.phase, found.place, found.value, found.samples


class Lambda(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


class Residual(nn.Module):
    """x + body(x): the sum belongs to this module, not to the body."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attention(nn.Module):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.to_out = nn.Linear(D, D)
        self.gain = gain

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # x: (B, N, D)
        scores = self.to_q(x) * self.gain @ self.to_k(x).transpose(1, 2)
        if mask is not None:
            scores = scores + mask
        return self.to_out(scores.softmax(dim=-1) @ self.to_v(x))


class BadBackward(torch.autograd.Function):
    """The identity, with a kernel's bug: it returns NaN for sample 1."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[1] = torch.nan
        return gradient


def filled(module: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def data(dtype: torch.dtype = torch.float32, *shape: int) -> Tensor:
    return torch.linspace(0.5, 1.5, B * D).reshape(B, D).to(dtype) if not shape else torch.ones(B, *shape, dtype=dtype)


def one_large(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    x = data(dtype).clone()
    x[1] = value
    return x


def one_zero(x: Tensor) -> Tensor:
    x = x.clone()
    x[1] = 0
    return x


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    phase: str
    place: str
    value: str
    samples: tuple[int, ...]
    loss: Callable[[Tensor], Tensor] | None = None


def sequential(*modules: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(*modules).to(dtype)


def linear_overflow(dtype: torch.dtype, large: float) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def build():
        model = sequential(nn.Identity(), filled(nn.Linear(D, D), 1.0), nn.Identity(), filled(nn.Linear(D, D), 0.1))
        return model.to(dtype), (one_large(large, dtype),)

    return build


def conv_overflow():
    model = sequential(nn.Conv2d(2, 2, 1), filled(nn.Conv2d(2, 2, 3, padding=1), 1.0), nn.SiLU(), nn.Conv2d(2, 1, 1))
    filled(model[0], 1.0)
    x = torch.ones(B, 2, 4, 4)
    x[1] = 1e4
    return model.half(), (x.half(),)


class AddThenChild(nn.Module):
    """Overflows between its two children: the second child receives what is bad already."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + x)


class WhereMasked(nn.Module):
    """The untaken branch of `where` is finite in the forward pass and inf * 0 in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = identity_weights(nn.Linear(D, D, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return torch.where(h == 0, torch.zeros_like(h), h.sqrt())


class DictOutput(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, object]:
        return {"sample": x * scale, "note": "text", "count": 3, "index": torch.arange(2)}


class DictUser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = DictOutput(), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x, scale=x.new_tensor(1e30))["sample"])


class Shared(nn.Module):
    """The same module at every depth: fine at first, beyond float32 later."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = filled(nn.Linear(D, D, bias=False), 1e4)
        self.out = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(9):
            x = self.again(x)
        return self.out(x)


class Checkpointed(nn.Module):
    def __init__(self, block: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(D, D), block, nn.Linear(D, D)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.stem(x), use_reentrant=self.use_reentrant))


class ScaledAttention(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(D, D), filled(Attention(gain), 1.0), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.embed(x)))


def attention_overflow():
    model = ScaledAttention(gain=1e4).half()
    filled(model.embed, 1.0)
    return model, (torch.ones(B, 5, D, dtype=torch.float16),)


def custom_backward(use_reentrant: bool | None = None):
    block = nn.Sequential(nn.Linear(D, D), Lambda(BadBackward.apply), nn.Linear(D, D))
    if use_reentrant is None:
        return nn.Sequential(nn.Linear(D, D), block, nn.Linear(D, D)), (data(),)
    return Checkpointed(block, use_reentrant), (data(),)


def weight_gradient_overflow():
    # Activations 1e3 and output gradients 100, over B samples: products of 1e5 exceed float16 in the weight alone.
    model = sequential(nn.Identity(), filled(nn.Linear(D, D, bias=False), 1e-3), dtype=torch.float16)
    return model, (torch.full((B, D), 1e3, dtype=torch.float16),)


def identity_weights(module: nn.Linear) -> nn.Linear:
    nn.init.eye_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def with_zero_row(module: nn.Module):
    """A model whose inner linear map is the identity, so that a zero input sample stays zero."""
    return nn.Sequential(identity_weights(nn.Linear(D, D)), module, nn.Identity()), (one_zero(data()),)


CASES = [
    *(
        Case(f"linear overflows {name}", linear_overflow(dtype, large), "forward", "1", "inf", (1,))
        for name, dtype, large in (
            ("float16", torch.float16, 6e4),
            ("bfloat16", torch.bfloat16, 3e38),
            ("float32", torch.float32, 3e38),
            ("float64", torch.float64, 1.5e308),
        )
    ),
    Case("convolution overflows float16", conv_overflow, "forward", "1", "inf", (1,)),
    Case("attention logits overflow float16", attention_overflow, "forward", "attention", "nan", (0, 1, 2)),
    Case("log(0)", lambda: with_zero_row(Lambda(torch.log)), "forward", "1", "-inf", (1,)),
    Case("0/0", lambda: with_zero_row(Lambda(lambda x: x / x)), "forward", "1", "nan", (1,)),
    Case("sqrt of negative", lambda: with_zero_row(Lambda(lambda x: (x - 0.1).sqrt())), "forward", "1", "nan", (1,)),
    Case(
        "residual add overflows in the parent",
        lambda: (sequential(Residual(nn.Identity()), nn.Linear(D, D)), (one_large(3e38),)),
        "forward",
        "0",
        "inf",
        (1,),
    ),
    Case(
        "sum between two children",
        lambda: (sequential(nn.Identity(), AddThenChild()), (one_large(3e38),)),
        "forward",
        "1",
        "inf",
        (1,),
    ),
    Case("dict output, keyword input", lambda: (DictUser(), (one_large(1e10),)), "forward", "inner", "inf", (1,)),
    Case("shared module, named by its first name", lambda: (Shared(), (data(),)), "forward", "first", "inf", (0, 1, 2)),
    Case(
        "in-place module after a good one",
        lambda: (sequential(filled(nn.Linear(D, D), 1.0), Lambda(lambda x: x.mul_(3e38)), nn.Identity()), (data(),)),
        "forward",
        "1",
        "inf",
        (0, 1, 2),
    ),
    *(
        Case(
            f"forward overflow in a checkpoint, reentrant {reentrant}",
            lambda reentrant=reentrant: (
                Checkpointed(nn.Sequential(nn.Identity(), Lambda(lambda x: (x.abs() + 1) * 3e38 * 1e3)), reentrant),
                (data(),),
            ),
            "forward",
            "block.1",
            "inf",
            (0, 1, 2),
        )
        for reentrant in (False, True)
    ),
    Case("sqrt'(0)", lambda: with_zero_row(Lambda(torch.sqrt)), "backward", "1", "nan", (1,)),
    Case(
        "norm'(0) by hand",
        lambda: with_zero_row(Lambda(lambda x: x.square().sum(-1, keepdim=True).sqrt())),
        "backward",
        "1",
        "nan",
        (1,),
    ),
    Case(
        "untaken branch of where",
        lambda: (
            nn.Sequential(identity_weights(nn.Linear(D, D)), WhereMasked(), nn.Linear(D, D)),
            (one_zero(data()),),
        ),
        "backward",
        "1",
        "nan",
        (1,),
    ),
    Case("custom backward", custom_backward, "backward", "1.1", "nan", (1,)),
    Case("custom backward, checkpoint", lambda: custom_backward(False), "backward", "block.1", "nan", (1,)),
    Case("custom backward, reentrant", lambda: custom_backward(True), "backward", "block.1", "nan", (1,)),
    Case(
        "weight gradient overflows float16",
        weight_gradient_overflow,
        "backward",
        "1",
        "inf",
        (),
        loss=lambda y: (y.float() * 100).sum(),
    ),
    Case(
        "0/0 in the loss: an empty mask",
        lambda: (nn.Sequential(nn.Linear(D, D)), (data(),)),
        "loss",
        "loss",
        "nan",
        (),
        loss=lambda y: (y * 0).sum() / (y * 0).sum(),
    ),
    Case(
        "0/0 in one sample's loss",
        lambda: (nn.Sequential(identity_weights(nn.Linear(D, D))), (one_zero(data()),)),
        "loss",
        "loss",
        "nan",
        (1,),
        loss=lambda y: y.sum(dim=1) / y.sum(dim=1),
    ),
    Case(
        "sqrt'(0) in the loss: finite loss, bad gradient",
        lambda: (nn.Sequential(identity_weights(nn.Linear(D, D))), (one_zero(data()),)),
        "backward",
        "loss",
        "inf",
        (1,),
        loss=lambda y: y.sum(dim=1).sqrt(),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fault_is_named(case: Case):
    torch.manual_seed(0)
    model, inputs = case.build()
    expected = case.phase, case.place, case.value, case.samples
    assert facts(locate(model, *inputs, loss=case.loss)) == expected
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    assert not any(after or before for after, before in hooks)


KINDS = {
    "linear": lambda: nn.Linear(D, D),
    "norm": lambda: nn.LayerNorm(D),
    "activation": lambda: nn.GELU(),
    "residual": lambda: Residual(nn.Linear(D, D)),
    "inplace": lambda: nn.SiLU(inplace=True),
    "identity": lambda: nn.Identity(),
    "view": lambda: nn.Unflatten(1, (D, 1)),
}


class Poison(torch.autograd.Function):
    """Puts a value into one element of sample 2 of the output, or of the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, value: float, in_forward: bool) -> Tensor:
        ctx.value, ctx.in_forward = value, in_forward
        y = x.clone()
        if in_forward:
            y[2, 0] = value
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.clone()
        if not ctx.in_forward:
            gradient[2, 0] = ctx.value
        return gradient, None, None


class Poisoned(nn.Module):
    def __init__(self, kind: nn.Module, value: float, in_forward: bool) -> None:
        super().__init__()
        self.kind, self.value, self.in_forward = kind, value, in_forward

    def forward(self, x: Tensor) -> Tensor:
        return Poison.apply(self.kind(x), self.value, self.in_forward)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("in_forward", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_module(kind: str, in_forward: bool, value: float, dtype: torch.dtype):
    """A fault between good modules of each kind, whatever the type: module, phase and sample are exact."""
    torch.manual_seed(0)
    faulty = Poisoned(KINDS[kind](), value, in_forward)
    model = nn.Sequential(nn.Linear(D, D), KINDS[kind](), nn.Flatten(), faulty, nn.Flatten(), nn.Linear(D, D)).to(dtype)
    found = locate(model, data(dtype), loss=lambda y: y.float().sum())
    phase = "forward" if in_forward else "backward"
    assert facts(found) == (phase, "3", str(value), (2,))
    assert found is not None
    assert (found.kind, found.dtype, found.num_nonfinite) == ("Poisoned", str(dtype).removeprefix("torch."), 1)
