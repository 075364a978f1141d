"""What runs and has no effect, or the wrong one: each kind is named, each twin that looks like it is silent."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from diagnostics import Watch
from tests.diagnostics.contracts.loops import Loop, Net, first, train


def said(loop: Loop) -> list[tuple[str, str, Any, str]]:
    return [(one.rule, one.severity, one.step, one.where) for one in loop.watch.findings]


# Backward passes, closures, steps


class Adversarial(Loop):
    """A segmenter and a critic, each with its optimizer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.critic = Net(), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        models = [self.model, self.critic]
        self.optimizer, self.optimizer_d = (torch.optim.SGD(one.parameters(), lr=0.05) for one in models)
        self.watch = Watch(models, [self.optimizer, self.optimizer_d], incidents=None)
        self.between = lambda loop: None


def adapts(loop: Adversarial, *, in_time: bool) -> None:
    def fool() -> None:
        softplus(-loop.critic(loop.model(loop.x + 1))).mean().backward()

    loop.optimizer.zero_grad()
    loop.loss().backward()
    if in_time:
        fool()
    loop.optimizer.step()
    if not in_time:
        fool()
    loop.optimizer_d.zero_grad()
    softplus(loop.critic(loop.model(loop.x).detach())).mean().backward()
    loop.optimizer_d.step()


def test_a_backward_that_nobody_steps_on():
    loop = Adversarial()
    loop.run(lambda loop: adapts(loop, in_time=False), 6)
    assert said(loop) == [("gradients-cleared-too-early", "alarm", 2, "optimizer 0.zero_grad")]
    assert Adversarial().run(lambda loop: adapts(loop, in_time=True), 6) == []


def closes(clear: Any) -> Any:
    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()

        def closure() -> Tensor:
            clear(loop)
            loss = loop.loss()
            loss.backward()
            return loss

        loop.optimizer.step(closure)

    return body


def by_hand(loop: Loop) -> None:
    for parameter in loop.model.parameters():
        if parameter.grad is not None:
            parameter.grad.data.zero_()


def test_a_closure_that_adds_to_its_last_call():
    def make(parameters: Any) -> Any:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)

    loop = Loop(optimizer=make)
    loop.run(closes(lambda loop: None), 3)
    assert said(loop) == [("gradients-not-cleared", "alarm", 0, "optimizer.zero_grad")]
    for clear in (
        lambda loop: loop.optimizer.zero_grad(),
        lambda loop: loop.model.zero_grad(set_to_none=False),
        by_hand,
    ):
        assert Loop(optimizer=make).run(closes(clear), 3) == []


class Scaled(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)


def steps_by(loop: Scaled, *, both: bool, anew: bool = False) -> None:
    if anew and loop.index % 3 == 0:
        loop.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop.optimizer.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()
    if both:
        loop.optimizer.step()


def test_a_step_by_the_scaler_and_one_more():
    loop = Scaled()
    loop.run(lambda loop: steps_by(loop, both=True), 5)
    assert said(loop) == [("scaler-bypassed", "alarm", 1, "optimizer.step")]
    assert Scaled().run(lambda loop: steps_by(loop, both=False), 5) == []


def test_a_scaler_for_every_epoch():
    loop = Scaled()
    loop.run(lambda loop: steps_by(loop, both=False, anew=True), 8)
    assert said(loop) == [("scaler-not-updated", "warning", 3, "GradScaler")]


def clips_one(loop: Adversarial, *, own: bool) -> None:
    loop.optimizer_d.zero_grad()
    softplus(loop.critic(loop.model(loop.x).detach())).mean().backward()
    nn.utils.clip_grad_norm_(loop.critic.parameters(), 0.1)
    loop.optimizer_d.step()
    loop.optimizer.zero_grad()
    softplus(-loop.critic(loop.model(loop.x))).mean().backward()
    nn.utils.clip_grad_norm_((loop.model if own else loop.critic).parameters(), 0.1)
    loop.optimizer.step()


def test_a_clip_of_the_other_model():
    loop = Adversarial()
    loop.run(lambda loop: clips_one(loop, own=False), 6)
    assert said(loop) == [("clipping-before-backward", "alarm", 2, "clip_grad_norm_ of optimizer 1 (SGD)")]
    assert Adversarial().run(lambda loop: clips_one(loop, own=True), 6) == []


@pytest.mark.parametrize("every", [True, False])
def test_steps_that_an_accumulation_never_lets_through(every: bool):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    watch = Watch(model, optimizer, accelerator=accelerator, incidents=None)
    for index in range(8):
        x, y = torch.randn(16, 8), torch.randint(0, 4, (16,))
        with accelerator.accumulate(model):

            def body(x: Tensor = x, y: Tensor = y, index: int = index) -> None:
                accelerator.backward(cross_entropy(model(x), y))
                if every or index % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()

            watch.step(body, batch={"x": x, "y": y})
    found = [(one.rule, one.severity, one.step) for one in watch.findings]
    expected = [("no-optimizer-step", "warning", 2), ("no-optimizer-step", "alarm", 4)]
    assert found == ([] if every else expected)


# Parameters


class Tempered(Net):
    """Scales what it gives; `make` makes the scale."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.scale = make(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda model: nn.Parameter(torch.ones(4, dtype=torch.float64)).float(), 1),
        (lambda model: nn.Parameter(torch.ones(4)) * 0.5, 1),
        (lambda model: torch.ones(4, requires_grad=True), 1),
        (lambda model: nn.Parameter(torch.ones(4)), None),
        (lambda model: torch.ones(4), None),
        (lambda model: model.last.bias[:1] + 1, None),  # kept from a parameter of its own
    ],
)
def test_a_parameter_that_is_none(make: Any, expected: int | None):
    loop = Loop(Tempered(make))

    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()
        loop.loss().backward(retain_graph=True)
        loop.optimizer.step()

    loop.run(body if expected is not None else lambda loop: None, 4)
    found = [one for one in said(loop) if one[0] == "parameter-without-optimizer"]
    assert found == ([] if expected is None else [("parameter-without-optimizer", "alarm", expected, "scale")])


def test_a_module_that_is_frozen_by_an_attribute():
    model = Net()
    model.first.requires_grad = False  # type: ignore[assignment]
    assert first(Loop(model).run(train, 4)) == {"frozen-parameter-moves": 0}
    model = Net()
    model.first.requires_grad = False  # type: ignore[assignment]
    model.first.requires_grad_(False)
    loop = Loop(model, torch.optim.AdamW(model.last.parameters()))
    assert loop.run(train, 4) == []


@pytest.mark.parametrize(("dtype", "decay"), [(torch.bfloat16, 0.9995), (torch.float32, 0.9995), (torch.bfloat16, 0.0)])
def test_an_average_that_keeps_its_bits(dtype: torch.dtype, decay: float):
    model = Net()
    shadow = Net().to(dtype).requires_grad_(False)
    shadow.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loop = Loop(model, optimizer)
    loop.watch = Watch([model, shadow], optimizer, incidents=None)

    def body(loop: Loop) -> None:
        train(loop)
        with torch.no_grad():
            for kept, current in zip(shadow.parameters(), model.parameters(), strict=True):
                kept.sub_((1 - decay) * (kept - current.to(dtype)))

    is_lost = dtype is torch.bfloat16 and decay > 0
    assert first(loop.run(body, 5)) == ({"half-precision-weights": 1} if is_lost else {})


class Scorer(nn.Module):
    """(B, 8) -> (B, 4), a mean of two halves by their scores."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net, self.score, self.dim = nn.Linear(4, 4), nn.Linear(4, 1), dim

    def forward(self, x: Tensor) -> Tensor:
        halves = x.view(-1, 2, 4)
        return (self.net(halves) * self.score(halves).softmax(self.dim)).sum(1)


def test_gradients_of_zeros():
    found = Loop(Scorer(dim=-1)).run(train, 5)
    assert [(one.rule, one.severity, one.step, one.where) for one in found] == [
        ("parameter-without-gradient", "warning", 2, "score.weight")
    ]
    assert Loop(Scorer(dim=1)).run(train, 5) == []

    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()
        (loop.loss() * 0).backward()
        loop.optimizer.step()

    assert first(Loop(optimizer=lambda p: torch.optim.SGD(p, lr=0.1)).run(body, 5)) == {"loss-without-gradient": 2}


def test_a_layer_that_never_runs_is_a_warning():
    class Lit(Net):
        def __init__(self) -> None:
            super().__init__()
            self.light = nn.Linear(3, 8)

    (found,) = Loop(Lit()).run(train, 5)
    assert (found.rule, found.severity, found.step) == ("parameter-without-gradient", "warning", 2)
    assert found.where == "light.weight" and "has not run" in found.evidence


# Batches


class Seen(Loop):
    """Trains on `x`; `batch=` is what a test makes of it."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def run(self, body: Any = train, num_steps: int = 6) -> Any:
        torch.manual_seed(1)
        for self.index in range(num_steps):
            self.x, self.y = torch.randn(16, 8), torch.randint(0, 4, (16,))
            self.watch.step(lambda: body(self), batch=self.make(self))
        return [(one.rule, one.severity, one.step, one.where) for one in self.watch.findings]


def test_one_sample_several_times():
    def one(loop: Loop) -> dict[str, Tensor]:
        return {"x": loop.x[:1].repeat(16, 1), "y": loop.y[:1].repeat(16)}

    repeated = ("batch-repeats", "warning", 1, "x")
    assert repeated in Seen(one).run()
    assert Seen(lambda loop: {"x": loop.x[:4].repeat(4, 1), "y": loop.y[:4].repeat(4)}).run() == [repeated]
    # a group of answers to each question, and one picture that is overfitted
    assert Seen(lambda loop: {"x": loop.x[:4].repeat(4, 1), "answers": torch.randn(16, 3)}).run() == []
    picture = torch.randn(1, 8).repeat(16, 1)
    assert Seen(lambda loop: {"x": picture}).run() == []


@pytest.mark.parametrize(
    ("tokens", "is_empty"),
    [([1, 2, 2, 2, 2, 2, 2, 2], True), ([1, 5, 9, 4, 7, 2, 2, 2], False), ([0] * 8, True), ([1, 2, 2], False)],
)
def test_texts_that_are_all_empty(tokens: list[int], is_empty: bool):
    def batch(loop: Loop) -> dict[str, Tensor]:
        return {"x": loop.x, "input_ids": torch.tensor([tokens] * 16)}

    expected = [("constant-input", "warning", 1, "input_ids")] if is_empty else []
    assert Seen(batch).run() == expected

    def some(loop: Loop) -> dict[str, Tensor]:
        texts = torch.tensor([tokens] * 16)
        texts[3, 1] = 17
        return {"x": loop.x, "input_ids": texts}

    assert Seen(some).run() == []


@pytest.mark.parametrize(("factor", "expected"), [(255, [("input-out-of-range", "alarm", 0, "mask")]), (1, [])])
def test_targets_of_a_binary_cross_entropy(factor: int, expected: list[Any]):
    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()
        binary_cross_entropy_with_logits(loop.model(loop.x), loop.mask.float()).backward()
        loop.optimizer.step()

    def batch(loop: Loop) -> dict[str, Tensor]:
        loop.mask = (torch.rand(16, 4) > 0.5).to(torch.uint8) * factor
        return {"x": loop.x, "mask": loop.mask}

    assert Seen(batch).run(body) == expected


# The best result, modes


def kept(best_val_loss: float, losses: list[float]) -> list[Any]:
    loop = Loop()
    for val_loss in [None, *losses, None]:
        x, y = torch.randn(16, 8), torch.randint(0, 4, (16,))
        loop.x, loop.y = x, y
        for attempt in loop.watch.attempts(batch={"x": x, "y": y}):
            with attempt:
                train(loop)
        if val_loss is not None and val_loss < best_val_loss:
            best_val_loss = val_loss
    return [(one.rule, one.severity, one.where) for one in loop.watch.findings]


def test_a_best_result_that_begins_where_nothing_is_better():
    losses = [0.9, 0.7, 0.8]
    assert kept(0.0, losses) == [("metric-direction", "warning", "val_loss")]
    assert kept(float("inf"), losses) == [] and kept(1.0, losses) == []


class Pretrained(nn.Module):
    """A part with dropout in evaluation mode, as it was loaded; no forward of its own, as a Lightning module."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.Dropout(dropout)).eval(), nn.Linear(16, 4))


@pytest.mark.parametrize("dropout", [0.3, 0.0])
def test_a_part_that_was_left_in_evaluation_mode(dropout: float):
    model = Pretrained(dropout)
    model.net.training = True
    loop = Loop(model)
    loop.loss = lambda: cross_entropy(model.net(loop.x), loop.y)  # type: ignore[method-assign]
    expected = [("evaluation-mode-in-training", "warning", 1, "net.0")] if dropout else []
    loop.run(train, 4)
    assert said(loop) == expected


def test_validation_in_training_mode_of_a_model_that_has_no_forward():
    model = Pretrained().train()
    loop = Loop(model)
    loop.loss = lambda: cross_entropy(model.net(loop.x), loop.y)  # type: ignore[method-assign]

    def validates(loop: Loop, *, mode: bool) -> None:
        model.train(mode)
        with torch.no_grad():
            model.net(loop.x)
        model.train()

    loop.between = lambda loop: validates(loop, mode=False)
    assert loop.run(train, 4) == []
    loop.watch.detach()
    other = Loop(model)
    other.loss = lambda: cross_entropy(model.net(other.x), other.y)  # type: ignore[method-assign]
    other.between = lambda loop: validates(loop, mode=True)
    assert first(other.run(train, 4)) == {"training-mode-in-evaluation": 1}
    other.watch.detach()


# Epochs, generators, schedules, accumulations


def test_an_epoch_in_the_order_of_the_last_one_is_a_warning():
    pool = [torch.randn(16, 8) for _ in range(5)]
    orders = {True: [0, 1, 2, 3, 4] * 2, False: [0, 1, 2, 3, 4, 3, 0, 4, 2, 1]}
    for is_same, order in orders.items():
        loop = Seen(lambda loop, order=order: {"x": pool[order[loop.index]].clone()})
        assert loop.run(num_steps=10) == ([("batch-repeats", "warning", 7, "x")] if is_same else [])


@pytest.mark.parametrize(("draws", "rewinds"), [(True, True), (True, False), (False, True)])
def test_a_generator_that_is_rewound_between_steps(draws: bool, rewinds: bool):
    def body(loop: Loop) -> None:
        if draws:
            loop.x = loop.x + 0.1 * torch.randn_like(loop.x)
        train(loop)

    loop = Loop()
    xs = [(torch.randn(16, 8), torch.randint(0, 4, (16,))) for _ in range(8)]
    for index, (loop.x, loop.y) in enumerate(xs):
        if rewinds and index % 3 == 0:
            torch.manual_seed(0)  # for samples that are comparable
        loop.watch.step(lambda: body(loop), batch={"x": loop.x, "y": loop.y})
    expected = [("batch-repeats", "warning", 3, "random numbers: torch.manual_seed")] if draws and rewinds else []
    assert said(loop) == expected


@pytest.mark.parametrize("every", [1, 4])
def test_a_cycle_that_is_stepped_with_epochs(every: int):
    loop = Loop()
    schedule = torch.optim.lr_scheduler.OneCycleLR(loop.optimizer, max_lr=1e-2, total_steps=100)

    def between(loop: Loop) -> None:
        if loop.index % every == every - 1:
            schedule.step()

    loop.between = between
    loop.run(train, 6)
    expected = [("scheduler-count", "warning", 2, "scheduler.step (OneCycleLR)")] if every > 1 else []
    assert said(loop) == expected


def test_what_is_left_over_goes_into_the_next_step():
    def steps_at(ends: set[int]) -> list[Any]:
        loop = Loop()

        def body(loop: Loop) -> None:
            (loop.loss() / 3).backward()
            if loop.index in ends:
                loop.optimizer.step()
                loop.optimizer.zero_grad()

        loop.run(body, 12)
        return said(loop)

    assert steps_at({2, 5, 10}) == [("accumulation-count", "warning", 10, "optimizer.step")]
    assert steps_at({2, 5, 7, 10}) == []  # the last of an epoch has fewer


def test_accumulate_is_entered_once():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=3, cpu=True)
    model = Net()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    watch = Watch(model, optimizer, accelerator=accelerator, incidents=None)
    with accelerator.accumulate(model):
        for _ in range(5):
            x, y = torch.randn(16, 8), torch.randint(0, 4, (16,))

            def body(x: Tensor = x, y: Tensor = y) -> None:
                accelerator.backward(cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()

            watch.step(body, batch={"x": x, "y": y})
    found = [(one.rule, one.severity, one.step, one.where) for one in watch.findings]
    assert found == [("no-optimizer-step", "alarm", 2, "accelerator.accumulate")]


@pytest.mark.parametrize("attribute", ["require_grad", "requires_gradient", "requires_grad_"])
def test_a_misspelt_attribute_freezes_nothing(attribute: str):
    model = Net()
    for parameter in model.first.parameters():
        setattr(parameter, attribute, False)
    found = Loop(model).run(train, 3)
    assert {(one.rule, one.step) for one in found} == {("frozen-parameter-moves", 0)}
    assert [one.where for one in found] == ["first.weight", "first.bias"] and attribute in found[0].evidence


class Masked(nn.Module):
    """(B, 8), mask (B, 8) -> (B, 4)."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.net, self.use = Net(), use

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(self.use(x, mask))


@pytest.mark.parametrize(
    ("use", "is_lost"),
    [
        (lambda x, mask: (x.masked_fill(mask, 0.0), x)[1], True),
        (lambda x, mask: x.masked_fill(mask, 0.0), False),
        (lambda x, mask: x * (~mask), False),
    ],
)
def test_a_mask_whose_use_is_dropped_is_a_warning(use: Any, is_lost: bool):
    loop = Loop(Masked(use))
    for _ in range(5):
        x, y, mask = torch.randn(16, 8), torch.randint(0, 4, (16,)), torch.rand(16, 8) > 0.5
        loop.loss = lambda x=x, y=y, mask=mask: cross_entropy(loop.model(x, mask), y)  # type: ignore[misc]
        loop.watch.step(lambda: train(loop), batch={"x": x, "y": y, "mask": mask})
    expected = [("input-without-influence", "warning", 2, "mask")] if is_lost else []
    assert said(loop) == expected


def test_an_input_that_nobody_takes_is_a_warning():
    """Its shape is all that is used."""
    made = Seen(lambda loop: {"x": loop.x, "y": loop.y, "image": loop.x[:, :4].clone()})

    def body(loop: Any) -> None:
        noise = torch.randn_like(loop.image)
        loop.optimizer.zero_grad()
        (loop.loss() + 0 * noise.mean()).backward()
        loop.optimizer.step()

    def with_image(loop: Any) -> dict[str, Tensor]:
        loop.image = torch.randn(16, 4)
        return {"x": loop.x, "y": loop.y, "image": loop.image}

    made.make = with_image
    assert made.run(body) == [("input-without-influence", "warning", 2, "image")]


@pytest.mark.parametrize(("scale", "is_flat"), [(1 / 58, True), (1.0, False)])
def test_pictures_by_the_statistics_of_bytes(scale: float, is_flat: bool):
    found = Seen(
        lambda loop: {"image": (torch.rand(16, 3, 8, 8) - 123) * scale if is_flat else torch.rand(16, 3, 8, 8)}
    )
    expected = [("input-out-of-range", "warning", 1, "image")] if is_flat else []
    assert [one for one in found.run(num_steps=4) if one[0] == "input-out-of-range"] == expected
