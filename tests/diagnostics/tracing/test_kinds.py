"""Kinds of births that look like something else: each variant of a kind has the same event and cause."""

import functools
import importlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from diagnostics import Verdict, explain
from diagnostics.tensors import bad_flags

Kind = tuple[str | None, str]


def verdict(step: Callable[[], Tensor], **given: object) -> Verdict:
    found = explain(step, **given)  # type: ignore[arg-type]
    assert found is not None
    return found


def kind(step: Callable[[], Tensor], **given: object) -> Kind:
    found = verdict(step, **given)
    return found.exception, found.cause


def line_of(function: Callable[..., object]) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno}"


POLES: dict[str, Callable[[Tensor], Tensor]] = {
    "1 / z": lambda z: 1 / z,
    "ones / z": lambda z: torch.ones_like(z) / z,
    "in place": lambda z: torch.ones_like(z).div_(z),
    "foreach": lambda z: torch._foreach_div([torch.ones_like(z)], [z])[0],
    "log": torch.log,
    "log10": torch.log10,
    "log1p": lambda z: (z - 1).log1p(),
    "rsqrt": torch.rsqrt,
    "pow": lambda z: z**-2,
    "atanh": lambda z: (1 - z).atanh(),
}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("name", POLES)
def test_a_complex_pole_is_a_division_by_zero(name: str, dtype: torch.dtype) -> None:
    z = torch.tensor([1 + 1j, 0, 0.5], dtype=dtype)
    assert kind(lambda: POLES[name](z).abs().sum()) == ("divide_by_zero", "out_of_domain")


def test_complex_zero_over_zero_is_invalid_and_a_large_product_an_overflow() -> None:
    z, large = torch.zeros(2, dtype=torch.complex64), torch.full((2,), 1e30 + 1e30j)
    assert kind(lambda: (z / z).abs().sum()) == ("invalid", "out_of_domain")
    assert kind(lambda: (large * large).abs().sum()) == ("overflow", "overflow")
    assert kind(lambda: torch.exp(torch.full((2,), 1e3 + 1j)).abs().sum()) == ("overflow", "overflow")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_a_running_variance_of_one_value_is_an_empty_average(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm, x = nn.BatchNorm1d(3).to(dtype), torch.randn(shape).to(dtype)

    def step() -> Tensor:
        mean, variance = norm.running_mean, norm.running_var
        return torch.batch_norm(x, norm.weight, norm.bias, mean, variance, True, 0.1, 1e-5, False).sum()

    found = verdict(step, model=norm)
    assert (found.exception, found.cause, found.parameter) == ("invalid", "empty_reduction", "running_var")


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e20), (torch.float32, 1e37), (torch.bfloat16, 1e25), (torch.float64, 1e200)]
)
def test_attention_at_absurd_scale_overflows(backend: SDPBackend, dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 8, dtype=torch.float64) for _ in range(3))
    query, key, value = (query * scale).to(dtype), (key * scale).to(dtype), value.to(dtype)

    def step() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value).sum()

    found = verdict(step)
    assert (found.exception, found.cause) == ("overflow", "overflow")
    assert found.witness["operands"]


ONE = torch.randn(1, 4)
NONE = torch.randn(0, 3)
EMPTY: dict[str, Callable[[], Tensor]] = {
    "n - 1 of a length": lambda: (ONE - ONE.mean(0)).pow(2).sum(0) / (len(ONE) - 1),
    "n - 1 in place": lambda: (ONE - ONE.mean(0)).pow(2).sum(0).div_(len(ONE) - 1),
    "n - 1 of a mask": lambda: (ONE - ONE.mean(0)).pow(2).sum(0) / ((ONE > -9).float().sum(0) - 1),
    "cov": lambda: torch.cov(ONE.T),
    "corrcoef": lambda: torch.corrcoef(ONE.T),
    "numel": lambda: NONE.sum() / NONE.numel(),
    "mse_loss": lambda: F.mse_loss(NONE, NONE),
    "smooth_l1_loss": lambda: F.smooth_l1_loss(NONE, NONE),
    "huber_loss": lambda: F.huber_loss(NONE, NONE),
    "binary_cross_entropy": lambda: F.binary_cross_entropy_with_logits(NONE, NONE),
    "mse_loss under autocast": lambda: torch.autocast("cpu", torch.bfloat16)(F.mse_loss)(
        NONE @ ONE[:, :3].T, NONE[:, :1]
    ),
    "float mask": lambda: (ONE * torch.tensor([0.0])).sum() / torch.zeros(1, 4).mul(torch.ones(4)).sum(),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_average_over_nothing_is_one_however_it_is_written(name: str) -> None:
    assert kind(lambda: EMPTY[name]().sum()) == ("invalid", "empty_reduction")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_vector_of_zeros_over_its_length_is_no_empty_average(dtype: torch.dtype) -> None:
    x = torch.zeros(3, 4, dtype=dtype)
    x[0] = 1.5
    lengths: list[Callable[[Tensor], Tensor]] = [
        lambda v: v.sum(1, keepdim=True),
        lambda v: v.abs().sum(1, keepdim=True),
        lambda v: v.pow(2).sum(1, keepdim=True).sqrt(),
    ]
    for length in lengths:
        assert kind(lambda length=length: (x / length(x)).sum()) == ("invalid", "out_of_domain")  # type: ignore[misc]
    nothing = torch.zeros(4, dtype=dtype)
    assert kind(lambda: (nothing / nothing.sum()).sum()) == ("invalid", "out_of_domain")


HOOKS = ("tensor", "parameter", "partial", "module", "module, before", "after accumulation", "node")


@pytest.mark.parametrize("where", HOOKS)
def test_an_operator_in_a_users_hook_has_the_hooks_line(where: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)), torch.randn(4, 6)
    weight = model.get_parameter("0.weight")
    one: Callable[..., Tensor] = lambda *given: given[-1] / (given[-1] * 0)  # noqa: E731
    several: Callable[..., object] = lambda *given: tuple(g / (g * 0) for g in given[-1])  # noqa: E731
    whole: Callable[..., object] = lambda module, into, out: tuple(g / (g * 0) for g in into)  # noqa: E731
    kept: Callable[..., None] = lambda p: p.grad.div_(p.grad * 0) and None  # noqa: E731
    hook = {"module": whole, "module, before": several, "node": several, "after accumulation": kept}.get(where, one)
    if where == "parameter":
        weight.register_hook(hook)
    if where == "module":
        model[2].register_full_backward_hook(hook)
    if where == "module, before":
        model[2].register_full_backward_pre_hook(hook)
    if where == "after accumulation":
        weight.register_post_accumulate_grad_hook(hook)

    def step() -> Tensor:
        hidden = model[1](model[0](x))
        if where in ("tensor", "partial"):
            hidden.register_hook(hook if where == "tensor" else functools.partial(hook, 1))
        if where == "node":
            hidden.grad_fn.register_hook(hook)
        loss: Tensor = model[2](hidden).pow(2).mean()
        loss.backward()
        return loss

    found = verdict(step, model=model)
    assert (found.phase, found.op, found.source) == ("backward", "div", line_of(hook))


def test_an_optimizer_that_steps_in_a_hook_is_the_optimizers_phase() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).half()
    optimizers = {weight: torch.optim.Adam([weight], foreach=False) for weight in model.parameters()}
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: optimizers[weight].step())
    x = torch.randn(4, 3).half()

    def step() -> Tensor:
        loss = (model(x) * 1e-3).float().pow(2).mean()
        loss.backward()
        return loss

    found = verdict(step, model=model, optimizer=list(optimizers.values()))
    assert (found.phase, found.cause) == ("optimizer", "underflow")


def test_the_line_is_the_users_call_and_that_in_the_library_stands_next_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib" / "site-packages" / "normalisers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def normalise(x, length):\n    return x / length\n")
    monkeypatch.syspath_prepend(str(package.parent))
    library = importlib.import_module("normalisers")
    calls: dict[str, Callable[[], Tensor]] = {
        "call": lambda: library.normalise(torch.ones(3), torch.zeros(3)).sum(),
        "partial": lambda: functools.partial(library.normalise, torch.ones(3))(torch.zeros(3)).sum(),
        "decorated": lambda: torch.no_grad()(library.normalise)(torch.ones(3), torch.zeros(3)).sum(),
    }
    for call in calls.values():
        found = verdict(call)
        assert found.source == line_of(call)
        assert found.witness["issued_at"] == f"{package / '__init__.py'}:2"

    weight = nn.Parameter(torch.zeros(3))
    library.normalise.__globals__["root"] = torch.sqrt

    def backward() -> None:
        library.root(weight).sum().backward()

    found = verdict(backward, model=nn.ParameterList([weight]))  # type: ignore[arg-type]
    assert found.phase == "backward" and found.source == f"{__file__}:{backward.__code__.co_firstlineno + 1}"


def test_sums_that_overflow_do_not_make_finite_tensors_bad() -> None:
    tensors = [
        torch.full((4,), 3e38),
        torch.full((9,), 6e4, dtype=torch.float16),
        torch.tensor([math.inf, -math.inf]),
        torch.tensor([1.0, math.nan]),
        torch.full((3,), 3e38 + 1j),
        torch.tensor([complex(0, math.inf)]),
        torch.arange(4),
        torch.empty(0),
    ]
    assert bad_flags(tensors) == [False, False, True, True, False, True, False, False]
    assert [bad_flags([one])[0] for one in tensors] == bad_flags(tensors)
