"""Advice on kinds of faults, applied: what looks alike may need another change."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import explain
from shadowlab.bench.corpus import Scene
from tests.diagnostics.tracing.fixes.applied import Training

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
ZERO_ROW = X * torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])[:, None]
MASK = torch.arange(8) > 5

Compute = Callable[[nn.Module, bool], Tensor]  # (model, whether the advice is applied) -> loss


def real_weights(model: nn.Module, is_fixed: bool) -> Tensor:
    weights = torch.tensor([[0.2, 0.1], [0.0, 0.0], [0.3, 0.1], [0.0, 0.2], [0.1, 0.1]]).repeat(1, 4)
    total = weights.sum(1)
    error = (model(X).pow(2) * weights).sum(1)
    return (error / (torch.where(total == 0, 1.0, total) if is_fixed else total)).mean()


def signed_denominator(model: nn.Module, is_fixed: bool) -> Tensor:
    d = torch.tensor([-1.0, 2.0, 0.0, -0.5, 1.0])[:, None]
    y = model(X)
    return (y / (torch.where(d == 0, 1.0, d) if is_fixed else d)).pow(2).mean()


def inverse_root_of_a_zero_row(model: nn.Module, is_fixed: bool) -> Tensor:
    h = F.linear(ZERO_ROW, model.weight)  # type: ignore[arg-type]
    power = h.pow(2).sum(-1, keepdim=True)
    return (h * torch.rsqrt(power.clamp(min=1e-6) if is_fixed else power) - X).pow(2).mean()


def length_of_a_zero_row(model: nn.Module, is_fixed: bool) -> Tensor:
    h = F.linear(ZERO_ROW, model.weight)  # type: ignore[arg-type]
    power = h.pow(2).sum(-1, keepdim=True)
    return (h / (torch.sqrt(power.clamp(min=1e-6)) if is_fixed else power.sqrt()) - X).pow(2).mean()


def relative_entropy(model: nn.Module, is_fixed: bool) -> Tensor:
    p, q = model(X).softmax(-1), F.one_hot(torch.arange(5), 8).float()
    return (p * ((p + 1e-6) / (q + 1e-6) if is_fixed else p / q).log()).sum(-1).mean()


def sum_of_masked_logits(model: nn.Module, is_fixed: bool) -> Tensor:
    logits = model(X).masked_fill(MASK, -math.inf)
    return (logits.masked_fill(logits == -math.inf, 0.0) if is_fixed else logits).sum()


def entropy_of_masked_logits(model: nn.Module, is_fixed: bool) -> Tensor:
    x = model(X).masked_fill(MASK, -math.inf).log_softmax(-1)
    return (x.exp() * (x.masked_fill(x == -math.inf, 0.0) if is_fixed else x)).sum(-1).mean()


def smoothed_masked_logits(model: nn.Module, is_fixed: bool) -> Tensor:
    logits = model(X).masked_fill(MASK, -math.inf)
    if is_fixed:
        return F.cross_entropy(logits, torch.arange(5))
    return F.cross_entropy(logits, torch.arange(5), label_smoothing=0.1)


def lattice(model: nn.Module, is_fixed: bool) -> Tensor:
    no_path = -1e30 if is_fixed else -math.inf
    emission = model(X)
    near = (torch.arange(8)[:, None] - torch.arange(8)).abs() <= 1
    step = torch.where(near, 0.0, no_path)
    alpha = torch.where(torch.arange(8) == 0, emission[0], no_path)
    for t in range(1, 5):
        alpha = torch.logsumexp(alpha[:, None] + step, 0) + emission[t]
    return -alpha[3]


def transducer(model: nn.Module, is_fixed: bool) -> Tensor:
    no_path = torch.tensor(-1e30 if is_fixed else -math.inf)
    emission = model(X)
    alpha = [emission[0, 0], no_path, no_path]
    for t in range(1, 5):
        moved = [torch.logaddexp(alpha[u] + emission[t, u], alpha[u - 1] + emission[t, u]) for u in (1, 2)]
        alpha = [alpha[0] + emission[t, 0], *moved]
    return -alpha[2]


def table_of_the_loop(model: nn.Module, is_fixed: bool) -> Tensor:
    sigma = torch.linspace(0, 1, 10)
    inverse = 1 / (sigma.clamp(min=0.05) if is_fixed else sigma)
    table = torch.from_numpy(inverse.numpy().copy())  # as if it were made elsewhere
    return model(X * table[torch.tensor([3, 0, 2, 5, 7])][:, None]).pow(2).mean()


def weight_of_infinity(model: nn.Module, is_fixed: bool) -> Tensor:
    weight = torch.tensor(1.0 if is_fixed else math.inf)
    return (model(X) * 0).sum() * weight + model(X).pow(2).mean()


def length_of_large_numbers(model: nn.Module, is_fixed: bool) -> Tensor:
    y = 1e20 * model(X)
    return (y.double() if is_fixed else y).norm().log().float()


def contrastive(model: nn.Module, is_fixed: bool) -> Tensor:
    z = F.normalize(model(X), dim=-1)
    similar = z @ z.T / 0.005
    if is_fixed:
        return -F.log_softmax(similar, -1).roll(1, 0).diagonal().mean()
    odds = similar.exp()
    return -(odds.roll(1, 0).diagonal() / odds.sum(-1)).log().mean()


def float8(model: nn.Module, is_fixed: bool) -> Tensor:
    y = 1e6 * model(X)
    return (y.clamp(-57344, 57344) if is_fixed else y).to(torch.float8_e5m2).float().abs().mean() + y.abs().mean()


def one_observation(model: nn.Module, is_fixed: bool) -> Tensor:
    y, n = model(X[:1]), 1
    return ((y - y.mean(0)).pow(2).sum(0) / (max(n - 1, 1) if is_fixed else n - 1)).sum() + y.pow(2).mean()


def tiny_power(model: nn.Module, is_fixed: bool) -> Tensor:
    power = (1e-9 * model(X)).relu()
    return -torch.log(power.clamp(min=1e-13) if is_fixed else power).mean()


def next_to_zero(model: nn.Module, is_fixed: bool) -> Tensor:
    d = torch.tensor([1.0, -1.0, 1e-39, 2.0, 1.0])[:, None]
    return (model(X) / (torch.where(d.abs() < 1e-6, 1e-6, d) if is_fixed else d)).pow(2).mean()


def softmax_of_small_numbers(model: nn.Module, is_fixed: bool) -> Tensor:
    y = model(X) - 200
    odds = y.exp()
    return (torch.softmax(y, -1) if is_fixed else odds / odds.sum(-1, keepdim=True)).pow(2).mean()


def normal_without_scale(model: nn.Module, is_fixed: bool) -> Tensor:
    scale = model(X).relu()
    normal = torch.distributions.Normal(model(X), scale.clamp(min=1e-3) if is_fixed else scale, validate_args=False)
    return -normal.log_prob(model(X).detach() + 0.1).mean()


CASES: list[tuple[Compute, str]] = [
    (real_weights, "n / torch.where(d == 0, 1.0, d)"),
    (signed_denominator, "n / torch.where(d == 0, 1.0, d)"),
    (inverse_root_of_a_zero_row, "clamp(min=1e-6))"),
    (length_of_a_zero_row, "n / torch.sqrt(v.clamp(min=1e-6))"),
    (relative_entropy, "(n + 1e-6) / (q + 1e-6)"),
    (sum_of_masked_logits, "x.masked_fill(x == -torch.inf, 0.0)"),
    (entropy_of_masked_logits, "x.masked_fill(x == -torch.inf, 0.0)"),
    (smoothed_masked_logits, "leave `label_smoothing` out"),
    (lattice, "write -1e30 in its place"),
    (transducer, "write -1e30 in its place"),
    (table_of_the_loop, "keep it finite where it is made"),
    (weight_of_infinity, "keep it finite where it is made"),
    (length_of_large_numbers, "`x.double()` before"),
    (contrastive, "F.log_softmax(x, -1)"),
    (float8, "x.clamp(-57344, 57344).to(torch.float8_e5m2)"),
    (one_observation, "max(d, 1)"),
    (next_to_zero, "torch.where(d.abs() < 1e-6, 1e-6, d)"),
    (softmax_of_small_numbers, "torch.softmax(x, -1)"),
    (normal_without_scale, "inside of a function of torch"),
    (tiny_power, "clamp(min=1e-1"),
]


def scene_of(compute: Compute, is_fixed: bool) -> Scene:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)

    def step() -> Tensor:
        loss = compute(model, is_fixed)
        loss.backward()
        return loss.detach()

    return Scene(step, model, None, {"x": X})


@pytest.mark.parametrize(("compute", "says"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_told_mends(compute: Compute, says: str):
    wrong = scene_of(compute, is_fixed=False)
    verdict = explain(wrong.step, model=wrong.model, batch=wrong.batch)
    assert verdict is not None and says in verdict.fix

    training = Training(scene_of(compute, is_fixed=True))
    training.step(lambda step: _is_healthy(training.scene, step))
    for _ in range(2):
        training.step(lambda step: step())
    assert training.bad(gradients=True) == []
    assert training.losses[-1] < training.losses[0]


def _is_healthy(scene: Scene, step: Callable[[], Any]) -> None:
    assert explain(step, model=scene.model, batch=scene.batch) is None


class Counted(torch.optim.Optimizer):
    """Adam by hand; `first` is the count of the first step."""

    def __init__(self, parameters: Any, first: int) -> None:
        super().__init__(parameters, {"lr": 1e-2})
        self.count = torch.tensor(float(first - 1))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.count += 1
        for parameter in self.param_groups[0]["params"]:
            mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
            mean.lerp_(parameter.grad, 0.1)
            parameter.sub_(0.01 * (mean / (1 - 0.9**self.count)))


@pytest.mark.parametrize("first", [0, 1])
def test_a_lost_step_counter_is_no_matter_of_an_epsilon(first: int):
    model = nn.Linear(8, 8)
    optimizer = Counted(model.parameters(), first)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(X).pow(2).mean()
        loss.backward()
        optimizer.step()
        return loss

    verdict = explain(step, model=model, optimizer=optimizer)
    assert (verdict is None) == (first == 1)
    assert verdict is None or "count this step before the division" in verdict.fix


@pytest.mark.parametrize("kind", ["saved", "not saved", "attribute"])
def test_a_table_is_mended_where_it_is_made_and_not_by_a_checkpoint(kind: str):
    class Scaled(nn.Module):
        inverse: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear, table = nn.Linear(8, 8), 1 / torch.linspace(0, 1, 10)
            if kind == "attribute":
                self.inverse = table
            else:
                self.register_buffer("inverse", table, persistent=kind == "saved")

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x * self.inverse[torch.tensor([3, 0, 2, 5, 7])][:, None])

    model = Scaled()
    verdict = explain(lambda: model(X).pow(2).mean(), model=model)
    assert verdict is not None and "mend" in verdict.fix and "[0]" in verdict.fix
    assert ("no checkpoint holds this table" in verdict.fix) == (kind != "saved")
