"""What counts as a sink, which phase a value belongs to, and healthy steps of unusual kinds."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diagnostics import Verdict, explain
from diagnostics.tensors import magnitude

pytestmark = pytest.mark.usefixtures("seeded")


def found(step: Callable[[], Any], **options: Any) -> Verdict:
    verdict = explain(step, **options)
    assert verdict is not None
    return verdict


# Sinks


@pytest.mark.parametrize("given", ["nothing", "optimizer", "model"])
def test_parameters_are_sinks_whoever_names_them(given: str):
    model, x = nn.Linear(4, 4), torch.zeros(3, 4)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> Tensor:
        optimizer.zero_grad()
        h = model(x)
        loss = torch.where(h > 0, h.sqrt(), torch.zeros_like(h)).mean()  # finite, with an infinite slope
        loss.backward()
        optimizer.step()
        return loss

    options = {"optimizer": {"optimizer": optimizer}, "model": {"model": model}}.get(given, {})
    verdict = found(step, **options)
    assert verdict.phase == "backward"
    assert verdict.path[-1].endswith("bias")


def test_a_trained_tensor_outside_the_model():
    model, x, weight = nn.Linear(4, 2), torch.randn(3, 4), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([*model.parameters(), weight], lr=0.1)

    def step() -> Tensor:
        loss = model(x).square().mean() + weight.square().sum().sqrt()
        loss.backward()
        return loss

    assert found(step, model=model, optimizer=optimizer).path[-1] == "gradient param_groups[0][2]"


def test_models_with_the_same_names_are_distinguished():
    one, two, three = (nn.Linear(2, 2) for _ in range(3))
    with torch.no_grad():
        three.weight[0, 0] = torch.nan
    x = torch.ones(3, 2)
    verdict = found(lambda: three(two(one(x))).sum().backward(), model=[one, two, three])
    assert (verdict.phase, verdict.parameter, verdict.module) == ("state", "Linear_2.weight", "Linear_2")


def returns_number(loss: float) -> Any:
    return loss


@pytest.mark.parametrize(
    "wrap", [returns_number, lambda v: {"loss": v}, lambda v: (v, 3), lambda v: [{"a": 1.0, "b": v}]]
)
def test_returned_numbers_are_losses(wrap: Callable[[float], Any]):
    model, x = nn.Linear(4, 4), torch.randn(3, 4)

    def step() -> Any:
        loss = (model(x) - 100).log().mean().item()
        torch.tensor(1000.0).exp().item()  # a perplexity that is only logged
        return wrap(loss)

    verdict = found(step, model=model)
    assert (verdict.op, verdict.value) == ("log", "nan")


def metrics(model: nn.Linear, x: Tensor, y: Tensor, old: list[Tensor]) -> dict[str, Any]:
    output = model(x)
    kept = y[:0]  # no prediction is right
    return {
        "accuracy of each class": F.one_hot(kept, 3).sum(0) / F.one_hot(y, 3).sum(0),
        "relative change": [(p.detach() - o).abs() / o.abs() for p, o in zip(model.parameters(), old, strict=True)],
        "gradient to weight": [p.grad.norm() / (p.detach() * 0).norm() for p in model.parameters()],
        "perplexity": (output.mean().detach() + 1000).exp(),
    }


def test_metrics_that_are_only_logged_raise_nothing():
    model, x, y, logs = nn.Linear(4, 3), torch.randn(3, 4), torch.tensor([0, 0, 1]), {}
    nn.init.zeros_(model.bias)
    old = [torch.zeros_like(p) for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        logs.update(metrics(model, x, y, old))
        return loss

    assert explain(step, model=model, optimizer=optimizer, batch={"x": x, "y": y}) is None
    assert math.isinf(logs["perplexity"]) and bool(logs["accuracy of each class"].isnan().any())


@pytest.mark.parametrize("by", ["tensor", "number"])
def test_a_norm_by_hand_that_scales_gradients_is_a_sink(by: str):
    model, x = nn.Linear(4, 3), torch.randn(3, 4)

    def step() -> None:
        model.zero_grad()
        (model(x) * 1e30).sum().backward()
        norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        factor = 1 / (norm.item() if by == "number" else norm)
        for parameter in model.parameters():
            parameter.grad.mul_(factor)

    verdict = found(step, model=model)
    assert (verdict.phase, verdict.cause) == ("clip", "overflow")


# Phases


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.AdamW])
def test_a_closure_is_not_the_optimizer(kind: Any):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(3, 4)
    optimizer = kind(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - 5).sqrt().mean()
        loss.backward()
        return loss

    verdict = found(lambda: optimizer.step(closure), model=model, optimizer=optimizer, batch={"x": x})
    assert (verdict.phase, verdict.op, verdict.samples) == ("loss", "sqrt", (0, 1, 2))


def test_a_gradient_penalty_is_part_of_the_loss():
    model, x = nn.Linear(4, 1), torch.randn(3, 4, requires_grad=True)

    def step() -> None:
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        (output.mean() + (slope.norm(dim=1) - 100).log().mean()).backward()

    assert found(step, model=model, batch={"x": x}).phase == "loss"


def test_a_second_loss_after_the_first_ones_backward():
    model, x = nn.Linear(4, 1), torch.randn(3, 4)

    def step() -> None:
        output = model(x)
        output.mean().backward(retain_graph=True)
        (output - 100).log().mean().backward()

    assert found(step, model=model, batch={"x": x}).phase == "loss"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "forward"])
def test_a_number_that_is_computed_with(number: float, where: str):
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * number

    model, x = (Scaled if where == "forward" else nn.Linear)(4, 2), torch.randn(3, 4)

    def step() -> Tensor:
        y = model(x)
        loss = y.square().mean() * (1.0 if where == "forward" else number)
        loss.backward()
        return loss

    verdict = found(step, model=model, batch={"x": x})
    assert (verdict.phase, verdict.op, verdict.cause) == (where, "mul", "bad_scalar"), verdict


def test_a_mask_made_by_arithmetic_raises_nothing():
    model, x = nn.Linear(4, 4), torch.randn(3, 4)

    def step() -> Tensor:
        mask = torch.triu(torch.ones(4, 4) * -math.inf, diagonal=1)
        y = model(x)
        loss = ((y.T @ y + mask).softmax(-1) @ y.T).mean()
        loss.backward()
        return loss

    assert explain(step, model=model, batch={"x": x}) is None


# Many births


def test_a_scaler_that_calibrates_many_layers():
    layers, x = nn.ModuleList([nn.Linear(8, 4) for _ in range(40)]), torch.randn(16, 8)
    optimizer, scaler = torch.optim.SGD(layers.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**20)

    def step() -> Tensor:
        loss = torch.zeros(())
        for layer in layers:
            with torch.autocast("cpu", torch.float16):
                y = layer(x)
            loss = loss + (y.float() - 10).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    assert explain(step, model=layers, optimizer=optimizer, batch={"x": x}) is None


def test_a_birth_after_many_harmless_ones():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)

    def step() -> Tensor:
        loss = model(x).sum()
        for _ in range(40):
            p = torch.zeros(3)
            loss = loss + torch.where(p > 0, p.log(), torch.zeros(3)).sum()
        loss = loss + (model(x) / 0.0).sum()
        loss.backward()
        return loss

    verdict = found(step, model=model, batch={"x": x})
    assert (verdict.op, verdict.exception) == ("div", "divide_by_zero")
    assert verdict.witness["operands"]["other"] == 0.0


# Batches


def test_a_list_of_pictures_is_one_of_samples():
    model, pictures = nn.Conv2d(3, 2, 3), [torch.randn(3, 8, 8) for _ in range(5)]
    pictures[1][2, 4, 4] = math.nan
    verdict = found(lambda: model(torch.stack(pictures)).square().mean().backward(), model=model, batch=pictures)
    assert (verdict.phase, verdict.samples) == ("data", (1,))
    assert "batch[1]" in verdict.headline()


@dataclasses.dataclass
class Batch:
    x: Tensor
    y: Tensor
    ids: list[str]


def test_a_bad_weight_under_micro_batches_has_no_sample():
    model, batch = nn.Linear(4, 2), [{"x": torch.randn(3, 4), "ids": list("abc")} for _ in range(2)]
    with torch.no_grad():
        model.weight[1, 2] = math.nan

    def step() -> None:
        for part in batch:
            model(part["x"]).square().mean().backward()

    verdict = found(step, model=model, batch=batch)
    assert (verdict.phase, verdict.parameter, verdict.samples, verdict.sample_ids) == ("state", "weight", (), ())


def test_a_dataclass_is_a_batch():
    model, batch = nn.Linear(4, 4), Batch(torch.randn(3, 4), torch.randn(3, 4), list("abc"))
    batch.y[1, 0] = math.nan
    verdict = found(lambda: (model(batch.x) - batch.y).square().mean().backward(), model=model, batch=batch)
    assert (verdict.parameter, verdict.sample_ids) == ("y", ("b",))


# Healthy steps of unusual kinds


def functional(model: nn.Module, x: Tensor) -> None:
    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (row,)).square().mean()

    torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)


def forward_mode(model: nn.Module, x: Tensor) -> None:
    torch.func.jvp(model, (x,), (torch.ones_like(x),))


def other_layout(model: nn.Module, x: Tensor) -> None:
    model(x.to_mkldnn().to_dense()).sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize("step", [functional, forward_mode, other_layout])
def test_function_transforms_and_other_layouts(step: Callable[[nn.Module, Tensor], None]):
    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    assert explain(lambda: step(model, x), model=model, batch={"x": x, "blocked": x.to_mkldnn()}) is None


def test_a_lazy_model_and_eight_bit_floats():
    model, x = nn.Sequential(nn.LazyLinear(3), nn.ReLU()), torch.randn(3, 4)
    small = torch.tensor([1.0, math.inf]).to(torch.float8_e5m2)
    assert explain(lambda: model(x).sum().backward(), model=model, batch={"x": x, "small": small}) is None


def test_a_value_is_followed_through_eight_bit_floats():
    model, x = nn.Linear(4, 2), torch.full((3, 4), 1e6)

    def step():
        narrow = x.to(torch.float8_e5m2)  # its largest number is 57344
        loss = model(narrow.float()).sum()
        loss.backward()
        return loss

    verdict = found(step, model=model, batch={"x": x})
    assert (verdict.op, verdict.exception) == ("to_copy", "overflow"), verdict
    assert verdict.witness["dtype"] == "float8_e5m2"


def test_lines_that_a_person_types_are_named():
    model = nn.Linear(2, 2)
    scope = {"model": model, "x": torch.ones(1, 2)}
    exec(compile("def step():\n    return (model(x) - 100).log().sum()\n", "<ipython-input-7-ab>", "exec"), scope)
    assert found(scope["step"], model=model).source == "<ipython-input-7-ab>:2"


def test_a_function_of_this_package_is_never_the_users_line():
    model = nn.Linear(2, 2)

    def step() -> Tensor:
        loss = model(torch.ones(1, 2)).mean()
        return loss * magnitude([torch.full((4,), 6e4, dtype=torch.float16)])  # here: its norm is beyond float16

    verdict = found(step, model=model)
    assert (verdict.exception, verdict.source) == ("overflow", line_of(step, "here"))


def line_of(function: Callable[..., Any], mark: str) -> str:
    """`path:line` of the line of a function that carries a comment."""
    lines, first = inspect.getsourcelines(function)
    number = next(first + i for i, line in enumerate(lines) if f"# {mark}" in line)
    return f"{inspect.getsourcefile(function)}:{number}"


def test_an_exception_is_no_parameter():
    """The loop's own update raises before it wrote anything."""
    model = nn.Linear(3, 1)

    @torch.no_grad()
    def update(*_: Any) -> None:
        size = (model.weight.grad.square() - 100.0).sqrt()
        if not torch.isfinite(size).all():
            raise ArithmeticError("update")

    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            update()

    optimizer = Own(model.parameters(), lr=0.1)
    verdict = explain(lambda: (model(torch.ones(2, 3)).sum().backward(), optimizer.step()), model=model)
    assert verdict is not None
    assert (verdict.op, verdict.phase, verdict.parameter) == ("sqrt", "optimizer", None)
