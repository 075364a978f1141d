"""Loops that people run and that are right, however odd: no alarm, no family of contracts is lost, nothing raises."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW

from diagnostics import Watch

LOOPS: list[Callable[[], Watch]] = []


def loop(make: Callable[[], Watch]) -> Callable[[], Watch]:
    LOOPS.append(make)
    return make


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def run(watch: Watch, step: Callable[[int], Any], num: int = 8, batch: Any = None) -> Watch:
    for index in range(num):
        given = batch(index) if callable(batch) else batch
        watch.step(functools.partial(step, index), batch=given)
    return watch


def plain(model: nn.Module, optimizer: Any, loss: Callable[[int], Tensor]) -> Callable[[int], None]:
    def step(index: int) -> None:
        optimizer.zero_grad()
        loss(index).backward()
        optimizer.step()

    return step


def noise(*shape: int) -> Tensor:
    return torch.randn(shape or (4, 8))


@loop
def each_parameter_is_clipped_and_some_are_frozen() -> Watch:
    model = net()
    model[0].requires_grad_(False)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad])

    def step(index: int) -> None:
        optimizer.zero_grad()
        model(noise()).square().mean().backward()
        for parameter in model.parameters():
            clip_grad_norm_(parameter, 1.0)
        optimizer.step()

    return run(Watch(model, optimizer, incidents=None), step)


@loop
def a_shared_loss_and_one_of_its_own() -> Watch:
    encoder, decoder = nn.Linear(8, 8), nn.Linear(8, 8)
    optimizers = [AdamW(encoder.parameters()), AdamW(decoder.parameters())]

    def step(index: int) -> None:
        for one in optimizers:
            one.zero_grad()
        decoder(encoder(noise())).square().mean().backward()
        decoder(noise()).square().mean().backward()
        for one in optimizers:
            one.step()

    return run(Watch([encoder, decoder], optimizers, incidents=None), step)


@loop
def tasks_in_turn_and_every_optimizer_steps() -> Watch:
    parts = [nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 1)]
    optimizers = [AdamW(part.parameters()) for part in parts]

    def step(index: int) -> None:
        for one in optimizers:
            one.zero_grad()
        parts[1 + (index // 3) % 2](relu(parts[0](noise()))).square().mean().backward()
        for one in optimizers:
            one.step()

    return run(Watch(parts, optimizers, incidents=None), step)


class SharpnessAware(torch.optim.Optimizer):
    """Steps another optimizer inside, as its public implementations do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.base = SGD(self.param_groups, lr=0.1)

    def step(self, closure: Any) -> None:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        self.base.step()


@loop
def an_optimizer_steps_another_one() -> Watch:
    model = net()
    optimizer = SharpnessAware(model.parameters())

    def step(index: int) -> None:
        x = noise()

        def closure() -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()

        model(x).square().mean().backward()
        optimizer.step(closure)
        optimizer.zero_grad()

    return run(Watch(model, optimizer, incidents=None), step)


class TakesAModel(SGD):
    def step(self, model: nn.Module) -> None:  # type: ignore[override]
        assert list(model.parameters())
        super().step()


@loop
def a_step_is_given_a_model() -> Watch:
    model = net()
    optimizer = TakesAModel(model.parameters(), lr=0.1)

    def step(index: int) -> None:
        optimizer.zero_grad()
        model(noise()).square().mean().backward()
        optimizer.step(model)

    return run(Watch(model, optimizer, incidents=None), step)


@loop
def optimizers_step_inside_of_backward() -> Watch:
    model = net()
    optimizers = {p: SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    watch = Watch(model, list(optimizers.values()), incidents=None)
    return run(watch, lambda index: model(noise()).square().mean().backward())


@loop
def a_codebook_is_a_new_parameter_in_each_step() -> Watch:
    model = net()
    model.register_parameter("codes", nn.Parameter(noise()))
    optimizer = AdamW(model.parameters())

    def loss(index: int) -> Tensor:
        model.codes = nn.Parameter(0.9 * model.codes.detach() + 0.1 * noise())
        return model(model.codes.detach()).square().mean()

    return run(Watch(model, optimizer, incidents=None), plain(model, optimizer, loss))


@loop
def advantages_of_zero_at_first() -> Watch:
    model = net()
    optimizer = AdamW(model.parameters(), weight_decay=0.0)
    step = plain(model, optimizer, lambda index: (model(noise()) * (0.0 if index < 5 else 1.0)).mean())
    return run(Watch(model, optimizer, incidents=None), step)


@loop
def a_buffer_fills_before_anything_is_learned() -> Watch:
    model = net()
    optimizer = AdamW(model.parameters())
    learns = plain(model, optimizer, lambda index: model(noise()).square().mean())
    return run(Watch(model, optimizer, incidents=None), lambda index: learns(index) if index > 5 else None)


@loop
def a_weight_grows_from_zero() -> Watch:
    model = net()
    optimizer = AdamW(model.parameters())
    batch = {"x": noise(), "unlabelled": noise()}

    def loss(index: int) -> Tensor:
        consistency = model(batch["unlabelled"]).square().mean()
        return model(batch["x"]).square().mean() + min(1.0, index // 10) * consistency

    return run(Watch(model, optimizer, incidents=None), plain(model, optimizer, loss), batch=batch)


@loop
def a_loss_mask_of_ones_is_the_largest_input() -> Watch:
    model = net()
    optimizer = AdamW(model.parameters())

    def batch(index: int) -> dict[str, Tensor]:
        return {"x": noise(), "loss_mask": torch.ones(4, 128)}

    step = plain(model, optimizer, lambda index: model(noise()).square().mean())
    return run(Watch(model, optimizer, incidents=None), step, batch=batch)


@loop
def two_watches_of_one_loop() -> Watch:
    generator, critic = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2)), net()
    optimizers = SGD(generator.parameters(), lr=0.1), SGD(critic.parameters(), lr=0.1)
    of_generator = Watch(generator, optimizers[0], incidents=None)
    of_critic = Watch(critic, optimizers[1], incidents=None)

    def judge() -> None:
        with torch.no_grad():
            fake = generator(noise(4, 4))
        optimizers[1].zero_grad()
        (critic(fake).mean() - critic(noise()).square().mean()).backward()
        optimizers[1].step()

    for _ in range(5):
        of_generator.step(
            lambda: plain(generator, optimizers[0], lambda index: -critic(generator(noise(4, 4))).mean())(0)
        )
        of_critic.step(judge)
    assert [one for one in of_critic.findings if one.severity == "alarm"] == []
    return of_generator


@loop
def a_sparse_and_an_unsigned_input() -> Watch:
    model = net()
    optimizer = AdamW(model.parameters())

    def batch(index: int) -> dict[str, Tensor]:
        adjacency = (torch.rand(8, 8) > 0.7).float().to_sparse()
        return {"x": noise(8, 8), "adjacency": adjacency, "depth": torch.randint(0, 9, (8, 4)).to(torch.uint16)}

    step = plain(model, optimizer, lambda index: model(noise()).square().mean())
    return run(Watch(model, optimizer, incidents=None), step, batch=batch)


@loop
def a_few_prompts_take_turns() -> Watch:
    model, embedded = nn.Linear(64, 64), torch.randn(2, 7, 64)
    optimizer = AdamW(model.parameters())
    order = [0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1]

    def batch(index: int) -> dict[str, Tensor]:
        return {"latents": noise(1, 4, 4, 4), "prompt_embeds": torch.stack([embedded[order[index]]])}

    step = plain(model, optimizer, lambda index: model(embedded[order[index]]).square().mean())
    return run(Watch(model, optimizer, incidents=None), step, num=len(order), batch=batch)


def scaled(loss: Tensor, scaler: Any, *optimizers: Any) -> None:
    for one in optimizers:
        one.zero_grad()
    scaler.scale(loss).backward()
    for one in optimizers:
        scaler.step(one)


@loop
def a_scaler_is_updated_outside_of_the_step() -> Watch:
    model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, incidents=None)
    for _ in range(6):
        watch.step(lambda: scaled(model(noise()).square().mean(), scaler, optimizer))
        scaler.update()
    return watch


@loop
def each_task_has_a_scaler() -> Watch:
    model, scalers = net(), [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(3)]
    optimizer = SGD(model.parameters(), lr=0.1)

    def step(index: int) -> None:
        scaled(model(noise()).square().mean(), scalers[index % 3], optimizer)
        scalers[index % 3].update()

    return run(Watch(model, optimizer, incidents=None), step)


@loop
def steps_are_left_out_of_two_optimizers_and_a_schedule_goes_on() -> Watch:
    parts, scaler = [nn.Linear(8, 8), nn.Linear(8, 8)], torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizers = [SGD(part.parameters(), lr=0.1) for part in parts]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizers[0], lambda step: 1.0)

    def step(index: int) -> None:
        factor = 1e36 if index in (2, 4, 6) else 1.0
        scaled(factor * parts[1](parts[0](noise())).square().mean(), scaler, *optimizers)
        scaler.update()
        schedule.step()

    return run(Watch(parts, optimizers, incidents=None), step, num=9)


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("make", LOOPS, ids=lambda make: make.__name__)
def test_an_odd_loop_that_is_right(make: Callable[[], Watch]) -> None:
    torch.manual_seed(0)
    watch = make()
    found = [str(one) for one in watch.findings if one.severity == "alarm"]
    assert found == []
    assert watch._watched.contracts._contracts is not None
    assert watch._watched.contracts._contracts.lost == []
    watch.detach()


def test_a_graph_is_not_kept_after_an_error() -> None:
    """As in a loop that tries again with less after it ran out of memory."""
    import gc
    import weakref

    model = net()
    watch = Watch(model, AdamW(model.parameters()), incidents=None)
    kept: list[Any] = []

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            context.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            raise MemoryError("none left")

    def step() -> None:
        hidden = model(noise()) * 2
        kept.append(weakref.ref(hidden))
        binary_cross_entropy_with_logits(Fails.apply(hidden), torch.ones(4, 4)).backward()

    with pytest.raises(MemoryError):
        watch.step(step)
    gc.collect()
    assert kept[0]() is None
    watch.detach()
