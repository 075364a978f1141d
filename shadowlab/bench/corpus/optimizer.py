"""Faults born in the update: loss and gradients of the step are finite."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import gradient_of, training_step


@torch.library.custom_op("faults::blockwise_update", mutates_args={"parameter", "moment"})
def blockwise_update(parameter: Tensor, gradient: Tensor, moment: Tensor) -> None:
    """An optimizer kernel that writes NaN to the last entry of a state block."""
    moment.lerp_(gradient, 0.1)
    moment.view(-1)[-1] = torch.nan
    parameter.sub_(moment, alpha=1e-3)


def _two_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    return model


def epsilon_underflow_single() -> Scene:
    """AdamW on float16 weights: gradients of 1e-3 square to zero and eps=1e-8 is zero too; the update is m/0."""
    torch.manual_seed(0)
    model, batch = _two_layers().half(), {"x": torch.ones(5, 8).half()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)

    def step() -> Tensor:
        loss = 1e-4 * model(batch["x"]).float().sum()
        loss.backward()
        optimizer.step()  # origin
        return loss

    return Scene(step, model, optimizer, batch)


def epsilon_underflow_foreach() -> Scene:
    """The same by the foreach path; a batch of zeros gives the first weight no gradient, and the update is 0/0."""
    torch.manual_seed(1)
    model, batch = _two_layers().half(), {"x": torch.zeros(5, 8).half()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)

    def step() -> Tensor:
        loss = model(batch["x"]).float().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # origin
        return loss

    return Scene(step, model, optimizer, batch)


def epsilon_underflow_seen_later() -> Scene:
    """Two steps: the update of the first poisons the float16 weights, the loss of the second shows it."""
    torch.manual_seed(2)
    model, batch = _two_layers().half(), {"x": torch.ones(5, 8).half()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    one_step = training_step(lambda: 1e-4 * model(batch["x"]).float().sum(), optimizer)

    def step() -> Tensor:
        one_step()
        return one_step()

    return Scene(step, model, optimizer, batch)


def infinite_learning_rate() -> Scene:
    """A learning-rate finder doubled its way to inf."""
    torch.manual_seed(3)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.inf)
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer), model, optimizer, batch)


def undefined_learning_rate() -> Scene:
    """A cosine schedule over zero steps returned NaN; the loss of the following step shows it."""
    torch.manual_seed(4)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: float(torch.tensor(0.0) / 0.0) if i else 1.0)
    one_step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)
    one_step()
    scheduler.step()

    def step() -> Tensor:
        one_step()
        return one_step()

    return Scene(step, model, optimizer, batch)


def update_overflow_float16() -> Scene:
    """SGD with a learning rate of 1e4 takes float16 weights beyond 65504 in one step."""
    torch.manual_seed(5)
    model, batch = nn.Sequential(nn.Flatten(), nn.Linear(8, 4)).half(), {"x": torch.full((5, 8), 10.0).half()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4, foreach=False)
    return Scene(training_step(lambda: model(batch["x"]).float().sum(), optimizer), model, optimizer, batch)


def _second_moment_overflow(*, foreach: bool | None = None, fused: bool | None = None) -> Scene:
    torch.manual_seed(6)
    model, batch = nn.Sequential(nn.Tanh(), nn.Linear(8, 4)), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=foreach, fused=fused)
    return Scene(training_step(lambda: 1e23 * model(batch["x"]).mean(), optimizer), model, optimizer, batch)


def second_moment_overflow_foreach() -> Scene:
    """Gradients of 1e22 square beyond float32: `exp_avg_sq` is infinite, and the weights only stop moving."""
    return _second_moment_overflow(foreach=True)


def second_moment_overflow_fused() -> Scene:
    """The same in the fused kernel, which is one operator for all parameters."""
    return _second_moment_overflow(fused=True)


def centred_variance_below_zero() -> Scene:
    """Centred RMSprop takes the root of E[g^2] - E[g]^2, which rounding makes negative."""
    torch.manual_seed(7)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.0, centered=True, foreach=False)
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer), model, optimizer, batch)


def adagrad_without_epsilon() -> Scene:
    """Adagrad with eps=0 divides a zero gradient by the root of its zero sum of squares."""
    torch.manual_seed(8)
    model, batch = nn.Embedding(6, 4), {"tokens": torch.tensor([0, 1, 2, 3, 4])}
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, eps=0.0, foreach=False)
    return Scene(training_step(lambda: model(batch["tokens"]).pow(2).mean(), optimizer), model, optimizer, batch)


def negative_second_moment() -> Scene:
    """A quantised `exp_avg_sq` came back as a finite negative number; its root is NaN."""
    torch.manual_seed(9)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)
    step()
    optimizer.state[model.bias]["exp_avg_sq"][2] = -1.0
    return Scene(step, model, optimizer, batch)


class _Custom(torch.optim.Optimizer):
    """An optimizer that is one function of its parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter], update: Callable[[list[nn.Parameter], Any], None]) -> None:
        super().__init__(parameters, {})
        self.update = update

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.update([parameter for group in self.param_groups for parameter in group["params"]], self.state)


def faulty_update_kernel() -> Scene:
    """An 8-bit optimizer's kernel writes NaN into its state from finite operands."""
    torch.manual_seed(10)
    model, batch = nn.Linear(8, 4, bias=False), {"x": torch.randn(5, 8)}

    def update(parameters: list[nn.Parameter], state: Any) -> None:
        for parameter in parameters:
            moment = state[parameter].setdefault("moment", torch.zeros_like(parameter))
            blockwise_update(parameter, parameter.grad, moment)  # origin

    optimizer = _Custom(model.parameters(), update)
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer), model, optimizer, batch)


def step_size_estimate() -> Scene:
    """A learning-rate-free optimizer estimates its step as a quotient of sums that start at zero: 0/0."""
    torch.manual_seed(11)
    model, batch = nn.Linear(8, 4, bias=False), {"x": torch.zeros(5, 8)}

    def update(parameters: list[nn.Parameter], state: Any) -> None:
        growth = sum(((gradient_of(parameter) * parameter).sum() for parameter in parameters), torch.zeros(()))
        length = sum((gradient_of(parameter).abs().sum() for parameter in parameters), torch.zeros(()))
        rate = torch.div(growth, length)  # origin
        for parameter in parameters:
            parameter.sub_(rate * gradient_of(parameter))

    optimizer = _Custom(model.parameters(), update)
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer), model, optimizer, batch)


def normalised_descent() -> Scene:
    """An update written in the loop divides by the gradient's norm, which is zero for one parameter."""
    torch.manual_seed(12)
    model, batch = nn.Linear(8, 4), {"x": torch.zeros(5, 8)}

    def step() -> Tensor:
        loss = (model(batch["x"]) - 1).pow(2).mean()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                gradient = gradient_of(parameter)
                parameter.sub_(0.1 * (gradient / gradient.norm()))  # origin
        return loss

    return Scene(step, model, None, batch)


def skipped_by_multiplication() -> Scene:
    """An optimizer skips bad steps by a factor of zero; 0 * inf is NaN. The gradient overflowed in backward."""
    torch.manual_seed(13)
    model, batch = nn.Linear(8, 4, bias=False), {"x": torch.full((5, 8), 2e4).half()}
    model.half()

    def update(parameters: list[nn.Parameter], state: Any) -> None:
        for parameter in parameters:
            gradient = gradient_of(parameter)
            parameter.sub_(gradient.isfinite().all().to(parameter.dtype) * gradient)

    def compute_loss() -> Tensor:
        output = model(batch["x"])  # origin
        return output.float().abs().sum()

    optimizer = _Custom(model.parameters(), update)
    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def _born(exception: object, cause: str, parameter: object = "weight", at_origin: bool = False) -> Expected:
    return Expected("optimizer", exception, cause, parameter=parameter, at_origin=at_origin)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "epsilon_underflow_single",
        "pytorch/pytorch#147437",
        epsilon_underflow_single,
        _born("divide_by_zero", "underflow", "0.weight", at_origin=True),
        ("float16", "inf_first"),
    ),
    Fault(
        "epsilon_underflow_foreach",
        "pytorch/pytorch#8860",
        epsilon_underflow_foreach,
        _born("invalid", "underflow", "0.weight", at_origin=True),
        ("float16", "foreach"),
    ),
    Fault(
        "epsilon_underflow_seen_later",
        "google-deepmind/optax#1754",
        epsilon_underflow_seen_later,
        _born("divide_by_zero", "underflow", "0.weight"),
        ("float16", "later", "inf_first"),
    ),
    Fault("infinite_learning_rate", "synthetic", infinite_learning_rate, _born(..., "bad_scalar"), ("inf_first",)),
    Fault("undefined_learning_rate", "synthetic", undefined_learning_rate, _born(..., "bad_scalar"), ("later",)),
    Fault(
        "update_overflow_float16",
        "synthetic",
        update_overflow_float16,
        _born("overflow", "overflow", "1.weight"),
        ("float16", "inf_first"),
    ),
    Fault(
        "second_moment_overflow_foreach",
        "deepspeedai/DeepSpeed#8035",
        second_moment_overflow_foreach,
        _born("overflow", "overflow", "1.weight"),
        ("foreach", "silent", "inf_first"),
    ),
    Fault(
        "second_moment_overflow_fused",
        "deepspeedai/DeepSpeed#8035",
        second_moment_overflow_fused,
        _born("overflow", "overflow", "1.weight"),
        ("fused", "silent", "inf_first"),
    ),
    Fault(
        "centred_variance_below_zero", "synthetic", centred_variance_below_zero, _born("invalid", "out_of_domain", ...)
    ),
    Fault("adagrad_without_epsilon", "synthetic", adagrad_without_epsilon, _born("invalid", "out_of_domain")),
    Fault(
        "negative_second_moment",
        "bitsandbytes-foundation/bitsandbytes#152",
        negative_second_moment,
        _born("invalid", "out_of_domain", "bias"),
        ("foreach",),
    ),
    Fault(
        "faulty_update_kernel",
        "bitsandbytes-foundation/bitsandbytes#227",
        faulty_update_kernel,
        _born(None, "kernel", at_origin=True),
        ("simulated",),
    ),
    Fault(
        "step_size_estimate",
        "facebookresearch/dadaptation#4",
        step_size_estimate,
        _born("invalid", "out_of_domain", ..., at_origin=True),
    ),
    Fault("normalised_descent", "synthetic", normalised_descent, _born("invalid", "out_of_domain", at_origin=True), ()),
    Fault(
        "skipped_by_multiplication",
        "https://github.com/allenai/OLMo-core/blob/main/src/olmo_core/optim/adamw.py",
        skipped_by_multiplication,
        Expected("backward", "overflow", "overflow", at_origin=True),
        ("float16", "far", "inf_first"),
    ),
)
