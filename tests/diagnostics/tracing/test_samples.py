"""Which samples a verdict names, and how: those whose rows are bad where it was born, and nobody else."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from diagnostics import explain
from diagnostics.tracing.step_batch import StepBatch
from diagnostics.verdict import Verdict

B = 5
PROMPTS = ["a cat on a mat", "two dogs", "the red house", "text", "rain"]


def data(*shape: int) -> Tensor:
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(0))


def found(
    compute: Callable[[nn.Module], Tensor], batch: Any, width: int = 8, model: nn.Module | None = None
) -> Verdict:
    torch.manual_seed(0)
    layer = nn.Linear(8, width) if model is None else model

    def step() -> Tensor:
        loss = compute(layer)
        loss.backward()
        return loss

    verdict = explain(step, model=layer, batch=batch)
    assert verdict is not None
    return verdict


def by_drawn_sigma(layer: nn.Module) -> Tensor:
    sigma = torch.linspace(0, 1, 10)[torch.tensor([3, 0, 5, 7, 9])]
    return layer(data(8) / sigma[:, None]).pow(2).mean()


def by_drawn_scale(layer: nn.Module) -> Tensor:
    sigma = torch.rand(B)
    sigma[1] = 0
    scale = 1 / sigma
    return layer(scale.pow(2)[:, None] * data(8)).pow(2).mean()


def by_drawn_noise(layer: nn.Module) -> Tensor:
    noise = torch.randn(B, 8)
    noise[1] = 0
    return layer(data(8) + noise / noise.norm(dim=-1, keepdim=True)).pow(2).mean()


def by_unnamed_weight(layer: nn.Module) -> Tensor:
    weight = torch.rand(B, 8)
    weight[1] = 0
    return (weight / weight.sum(1, keepdim=True) * layer(data(8)).pow(2)).mean()


def by_unnamed_input(layer: nn.Module) -> Tensor:
    raw = data(8)
    raw[1] = 0.5
    return layer((raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True)).pow(2).mean()


def by_a_list_of_as_many_steps(model: nn.Module) -> Tensor:
    waves = torch.stack([*data(B, 8)])
    waves[1] = 0.25
    frames = (waves - waves.mean((1, 2), keepdim=True)) / waves.std((1, 2), keepdim=True)
    return model(frames).pow(2).mean()


def by_vmap(layer: nn.Module) -> Tensor:
    x = data(8)
    x[1] = 0
    output: Tensor = torch.func.vmap(lambda one: layer(one) / one.norm())(x)
    return output.pow(2).mean()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "compute",
    [by_drawn_sigma, by_drawn_scale, by_drawn_noise, by_unnamed_weight, by_unnamed_input, by_vmap],
)
def test_what_the_loop_draws_and_computes_for_each_sample_is_known_by_where_it_meets_the_batch(
    compute: Callable[[nn.Module], Tensor], named: bool
):
    assert found(compute, {"x": data(8), "key": list("abcde")} if named else None).samples == (1,)


def test_gradients_of_each_sample():
    layer, x = nn.Linear(8, 8), data(8)

    def loss(parameters: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(layer, parameters, (one,))
        return (output - target).pow(2).sum().sqrt()

    def step() -> None:
        parameters = {name: value.detach() for name, value in layer.named_parameters()}
        target = layer(x).detach() + torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])[:, None]
        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, target)
        for name, parameter in layer.named_parameters():
            parameter.grad = gradients[name].mean(0)

    verdict = explain(step, model=layer, batch={"x": x})
    assert verdict is not None and verdict.samples == (2,)


def test_weights_of_as_many_classes_as_samples_are_no_samples():
    counts = torch.tensor([3.0, 0.0, 1.0, 2.0, 4.0])
    assert found(lambda head: (1 / counts * head(data(8)).pow(2)).mean(), {"x": data(8)}, width=B).samples == ()


def test_as_many_positions_as_samples_are_no_samples():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x + (1 / torch.arange(B))[:, None])

    assert found(lambda model: model(data(B, 8)).mean(), {"x": data(B, 8)}, model=Positions()).samples == ()


def test_what_enters_the_model_has_samples_however_that_turns_it():
    class TimeMajor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.transpose(0, 1).flatten(0, 1))

    batch = {"idx": torch.arange(10, 15), "text": PROMPTS}
    verdict = found(by_a_list_of_as_many_steps, batch, model=TimeMajor())
    assert (verdict.samples, verdict.sample_ids) == ((1,), ("11",))


@pytest.mark.parametrize("kind", ["loop", "hook", "accumulated"])
def test_a_flat_bucket_of_gradients_has_no_samples(kind: str):
    layer = nn.Linear(8, 10)  # 80 weights: a multiple of the batch

    def flattened(gradient: Tensor) -> Tensor:
        flat = gradient.reshape(-1)
        return (flat / (0 * flat)).view_as(gradient)

    def write(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.copy_(flattened(parameter.grad))

    for parameter in layer.parameters():
        if kind == "hook":
            parameter.register_hook(flattened)
        if kind == "accumulated":
            parameter.register_post_accumulate_grad_hook(write)

    def step() -> Tensor:
        loss: Tensor = layer(data(8)).pow(2).mean()
        loss.backward()
        if kind == "loop":
            for parameter in layer.parameters():
                write(parameter)
        return loss

    verdict = explain(step, model=layer, batch={"x": data(8)})
    assert verdict is not None and verdict.op == "div" and verdict.samples == ()


@pytest.mark.parametrize("named", [True, False])
def test_one_dimension_is_of_features(named: bool):
    x = torch.rand(8)
    x[3] = -1
    assert found(lambda layer: layer(x.log()).mean(), {"x": x} if named else None).samples == ()


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_only_the_samples_that_no_mask_leaves_out(value: float):
    depth, valid = torch.rand(B, 8), torch.ones(B, 1, dtype=torch.bool)
    depth[1], depth[3], valid[3] = value, value, False

    def compute(layer: nn.Module) -> Tensor:
        return (layer(data(8)) - torch.where(valid, depth, 0.0)).abs().mean()

    verdict = found(compute, {"x": data(8), "depth": depth})
    assert (verdict.parameter, verdict.samples) == ("depth", (1,))


@pytest.mark.parametrize(
    ("fields", "third"),
    [
        ({"prompt": PROMPTS, "key": list("abcde")}, "c"),
        ({"caption": PROMPTS, "idx": torch.arange(10, 15)}, "12"),
        ({"index": torch.arange(10, 15)}, "12"),
        ({"imageId": [3, 1, 4, 7, 5]}, "4"),
        ({"class_name": ["car"] * B, "path": [f"{i}.png" for i in range(B)]}, "2.png"),
        ({"meta": {"text": PROMPTS, "file_name": list("abcde")}}, "c"),
        ({"text": PROMPTS}, None),
        ({"stuff": PROMPTS}, None),
        ({"shard": list("abcde")}, "c"),
        ({"labels": torch.arange(B)}, None),
        ({"input_ids": torch.arange(B)}, None),
        ({"position_ids": torch.arange(B), "flags": [True] * B}, None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_id_is_what_is_called_so_and_a_prompt_is_none(fields: dict[str, Any], third: str | None):
    ids = StepBatch({"x": data(8), **fields}).ids()
    assert (ids[2] if ids else None) == third


class Pair(NamedTuple):
    left: Any
    right: Any


class Own:
    """A loader's own class, with what knows it."""

    __slots__ = ("_hidden", "left", "right", "whole")

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right, self.whole, self._hidden = left, right, self, data(3)


@pytest.mark.parametrize("make", [Pair, Own, SimpleNamespace], ids=lambda make: make.__name__)
def test_what_a_batch_of_any_class_holds_has_its_name_and_its_ids(make: Callable[..., Any]):
    x = data(8)
    x[3, 2] = torch.nan
    batch = make(left=data(8), right={"x": x, "idx": torch.arange(10, 15)})
    verdict = found(lambda layer: (layer(batch.left) + layer(batch.right["x"])).mean(), batch)
    assert (verdict.phase, verdict.parameter, verdict.samples, verdict.sample_ids) == ("data", "right.x", (3,), ("13",))
