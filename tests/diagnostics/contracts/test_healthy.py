"""Loops that look odd and are right: no finding in any of them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from diagnostics import Watch
from tests.diagnostics.contracts.loops import Loop, Net, train


class Normed(nn.Module):
    """(B, 8) -> (B, 4) with batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(8, 32),
            nn.BatchNorm1d(32),
            nn.Dropout(0.2),
            nn.Linear(32, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def frozen_backbone() -> Loop:
    model = Net()
    model.first.requires_grad_(False)
    return Loop(model, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))


def frozen_backbone_left_out() -> Loop:
    model = Net()
    model.first.requires_grad_(False)
    return Loop(model, torch.optim.AdamW(model.last.parameters(), lr=1e-2))


def tied_weights() -> Loop:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inward, self.outward = nn.Linear(8, 8), nn.Linear(8, 8)
            self.outward.weight = self.inward.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.outward(torch.relu(self.inward(x)))

    return Loop(Tied())


def unused_expert() -> Loop:
    class Experts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([self.first, nn.Linear(8, 32)])  # the second never has a turn

    return Loop(Experts())


def frozen_norm() -> Loop:
    loop = Loop(Normed())
    loop.model.norm.eval()
    return loop


def evaluation_mode_without_dropout() -> Loop:
    model = Normed()
    model.drop.p = 0.0
    return Loop(model.eval())


def zero_dropout() -> Loop:
    return Loop(Net(dropout=0.0).eval())


def warm_up_from_zero() -> Loop:
    loop = Loop()
    schedule = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda step: min(1.0, step / 4))
    loop.between = lambda loop: schedule.step()
    return loop


def warm_up_from_nothing() -> Loop:
    """Rates so small that float32 rounds the first updates away."""
    loop = Loop(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-12))
    loop.between = lambda loop: loop.optimizer.param_groups[0].update(lr=1e-12 * 10**loop.index)
    return loop


def schedule_inside() -> Loop:
    loop = Loop()
    loop.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, 20)
    return loop


def schedule_of_epochs() -> Loop:
    loop = Loop()
    schedule = torch.optim.lr_scheduler.StepLR(loop.optimizer, 2)
    loop.between = lambda loop: schedule.step() if loop.index % 4 == 3 else None
    return loop


def repeated_batch() -> Loop:
    loop = Loop()
    batch = {"x": torch.randn(16, 8), "y": torch.randint(0, 4, (16,))}
    loop.batch = lambda index: {name: tensor.clone() for name, tensor in batch.items()}
    return loop


def steps_of_one_batch() -> Loop:
    """Several epochs over the same samples, as policy optimisation has them."""
    loop = Loop()
    made: list[dict[str, Tensor]] = []

    def batch(index: int) -> dict[str, Any]:
        if index % 4 == 0:
            made.append({"x": torch.randn(16, 8), "y": torch.randint(0, 4, (16,))})
        return made[-1]

    loop.batch = batch
    return loop


def curriculum() -> Loop:
    loop = Loop()
    loop.batch = lambda index: {"x": torch.randn(16, 8) * (1 + 0.1 * index), "y": torch.full((16,), index % 4)}
    return loop


def constants_of_the_batch() -> Loop:
    """Grids, masks and weights that are the same in every batch."""
    loop = Loop()
    grid = torch.linspace(-1, 1, 256).reshape(1, 256)
    loop.batch = lambda index: {
        "x": torch.randn(16, 8),
        "y": torch.randint(0, 4, (16,)),
        "grid": grid.clone(),
        "mask": torch.ones(2, 2),
    }
    return loop


def validation() -> Loop:
    loop = Loop(Normed())

    def validate(loop: Loop) -> None:
        loop.model.eval()
        with torch.no_grad():
            loop.loss()
        loop.model.train()

    loop.between = validate
    return loop


def gradients_in_training_mode_between() -> Loop:
    """A second loop, that is not watched."""
    loop = Loop(Normed())

    def second(loop: Loop) -> None:
        loop.loss().backward()
        loop.optimizer.zero_grad()

    loop.between = second
    return loop


def averaged() -> Loop:
    loop = Loop(Normed())
    average = AveragedModel(loop.model)

    def update(loop: Loop) -> None:
        average.update_parameters(loop.model)
        update_bn([loop.x], average)

    loop.between = update
    return loop


def statistics_anew() -> Loop:
    model = Normed()
    model.drop.p = 0.0
    loop = Loop(model)
    loop.between = lambda loop: update_bn([loop.x], loop.model)
    return loop


def swapped_average() -> Loop:
    """Validation runs with averaged weights, which are exchanged and put back."""
    loop = Loop()
    average = [p.detach().clone() for p in loop.model.parameters()]

    def swap() -> None:
        for kept, parameter in zip(average, loop.model.parameters(), strict=True):
            held = parameter.data.clone()
            parameter.data.copy_(kept)
            kept.copy_(held)

    def between(loop: Loop) -> None:
        torch._foreach_lerp_(average, [p.detach() for p in loop.model.parameters()], 0.1)
        swap()
        with torch.no_grad():
            loop.loss()
        swap()

    loop.between = between
    return loop


def sparse_embedding() -> Loop:
    model = nn.Sequential(nn.Embedding(100, 8, sparse=True), nn.Flatten(), nn.Linear(16, 4))
    optimizers = [torch.optim.SparseAdam(model[0].parameters()), torch.optim.Adam(model[2].parameters())]
    loop = Loop(model, optimizers)
    loop.batch = lambda index: {"x": torch.randint(0, 100, (16, 2)), "y": torch.randint(0, 4, (16,))}
    return loop


def dense_embedding() -> Loop:
    model = nn.Sequential(nn.Embedding(100, 8), nn.Flatten(), nn.Linear(16, 4))
    loop = Loop(model)
    loop.batch = lambda index: {"x": torch.randint(0, 100, (16, 2)), "y": torch.randint(0, 4, (16,))}
    return loop


def step_of(loop: Loop) -> Any:
    """The ordinary step, with several optimizers too."""
    optimizers = loop.optimizer if isinstance(loop.optimizer, list) else [loop.optimizer]
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = loop.loss()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    if hasattr(loop, "schedule"):
        loop.schedule.step()
    return {"loss": loss.detach(), "accuracy": (loop.model(loop.x).argmax(1) == loop.y).float().mean()}


MAKERS = [value for value in list(globals().values()) if getattr(value, "__annotations__", {}) == {"return": Loop}]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_an_odd_loop_is_silent(make, recwarn):
    findings = make().run(step_of)
    assert not findings, [str(finding) for finding in findings]


# Loops with a body of their own


def test_a_gan_with_two_optimizers():
    torch.manual_seed(0)
    maker, judge = (
        nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8)),
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)),
    )
    makes, judges = (torch.optim.Adam(model.parameters(), lr=1e-3) for model in (maker, judge))
    for models, optimizers in (([maker, judge], [makes, judges]), (maker, makes), ([maker, judge], None)):
        watch = Watch(models, optimizers, incidents=None)

        def body(real: Tensor, index: int) -> dict[str, Tensor]:
            made = maker(torch.randn(16, 4))
            judges.zero_grad()
            loss_judge = (judge(made) - judge(real)).mean()  # not detached: the maker gets gradients that nobody uses
            loss_judge.backward()
            judges.step()
            makes.zero_grad()
            if index % 3 == 2:
                judge.requires_grad_(False)
                loss_maker = -judge(maker(torch.randn(16, 4))).mean()
                loss_maker.backward()
                makes.step()
                judge.requires_grad_(True)
            return {"loss_judge": loss_judge.detach()}

        for index in range(12):
            real = torch.randn(16, 8)
            watch.step(lambda real=real, index=index: body(real, index), batch=real)
        watch.detach()
        assert watch.findings == []


def test_gradient_reversal():
    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return -gradient

    class Adapting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.domain = nn.Linear(32, 1)

        def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.first(x))
            return self.last(h), self.domain(Reversed.apply(h))

    def body(loop: Loop) -> Any:
        loop.optimizer.zero_grad()
        guessed, domain = loop.model.both(loop.x)
        loss, loss_domain = cross_entropy(guessed, loop.y), domain.square().mean()
        total = loss + 0.1 * loss_domain
        total.backward()
        loop.optimizer.step()
        return {"loss": total, "loss_class": loss, "loss_domain": loss_domain}

    assert Loop(Adapting()).run(body) == []


def test_losses_that_are_logged():
    def body(loop: Loop) -> Any:
        loop.optimizer.zero_grad()
        guessed = loop.model(loop.x)
        loss = cross_entropy(guessed, loop.y)
        with torch.no_grad():
            logged = guessed.square().mean()
        loss.backward()
        loop.optimizer.step()
        return {"loss": loss, "loss_logged": logged, "spread": guessed.std()}

    assert Loop().run(body) == []


def test_a_teacher_that_follows():
    """Frozen parameters of the watched model that are moved by hand, after the optimizer."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = Net()
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return mse_loss(self.student(x), self.teacher(x + 0.1)) + self.student(x).square().mean()

    def body(loop: Loop) -> Tensor:
        loop.optimizer.zero_grad()
        loss = loop.model(loop.x)
        loss.backward()
        loop.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(loop.model.teacher.parameters(), loop.model.student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        return loss

    assert Loop(Pair()).run(body) == []


def test_a_hidden_state_that_is_carried():
    model = nn.GRU(8, 16, batch_first=True)
    loop, state = Loop(model), [torch.zeros(1, 4, 16)]

    def body(loop: Loop) -> Tensor:
        loop.optimizer.zero_grad()
        out, hidden = loop.model(loop.x.reshape(4, 4, 8), state[0])
        state[0] = hidden.detach()
        loss = out.square().mean()
        loss.backward()
        loop.optimizer.step()
        return loss

    assert loop.run(body) == []


def test_activation_checkpointing():
    class Checked(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=False))

    assert Loop(Checked()).run(train) == []


def test_a_parameter_beside_the_model():
    """Weights of several losses, which the optimizer holds and the model does not."""
    model, weight = Net(), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([*model.parameters(), weight], lr=1e-2)

    def body(loop: Loop) -> Tensor:
        loop.optimizer.zero_grad()
        loss = loop.loss() * torch.exp(-weight) + weight
        loss.backward()
        loop.optimizer.step()
        return loss

    assert Loop(model, optimizer).run(body) == []


def test_steps_outside_of_the_watch():
    loop = Loop()

    def body(loop: Loop) -> Tensor:
        loss = loop.loss()
        loss.backward()
        return loss

    def between(loop: Loop) -> None:
        loop.optimizer.step()
        loop.optimizer.zero_grad()

    loop.between = between
    assert loop.run(body) == []
