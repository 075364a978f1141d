"""Terms of the loss, and the inputs that it is computed from."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.diagnostics.contracts.loops import Loop, Net


def terms(cut: Any, is_added: bool = True) -> Any:
    def body(loop: Loop) -> dict[str, Tensor]:
        loop.optimizer.zero_grad()
        guessed = loop.model(loop.x)
        main, spread = cross_entropy(guessed, loop.y), cut(guessed.square().mean())
        total = main + spread if is_added else main * 1.0
        total.backward()
        loop.optimizer.step()
        return {"total": total, "loss_main": main, "loss_spread": spread}

    return body


def test_a_term_without_graph_is_named():
    for cut in (Tensor.detach, lambda term: torch.tensor(term.item())):
        (found,) = Loop().run(terms(cut))
        assert (found.rule, found.severity) == ("loss-term-without-gradient", "alarm")
        assert (found.step, found.where) == (1, "loss_spread")


def test_a_loss_that_is_returned_and_not_differentiated_is_a_warning():
    (found,) = Loop().run(terms(lambda term: term, is_added=False))
    assert (found.rule, found.severity, found.where) == ("loss-term-without-gradient", "warning", "loss_spread")


def test_terms_that_are_differentiated_or_only_logged_are_silent():
    assert Loop().run(terms(lambda term: term)) == []
    assert Loop().run(terms(Tensor.detach, is_added=False)) == []


class Conditioned(nn.Module):
    """(B, 8), (B, 3) -> (B, 4)."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.net, self.embed, self.use = Net(), nn.Linear(3, 8), use

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.net(self.use(self, x, condition))


def ignored(model: Any, x: Tensor, condition: Tensor) -> Tensor:
    return x


def times_zero(model: Any, x: Tensor, condition: Tensor) -> Tensor:
    return x + 0.0 * model.embed(condition)


def times_zeros(model: Any, x: Tensor, condition: Tensor) -> Tensor:
    return x + model.embed(condition * torch.zeros_like(condition))


def in_place_of(model: Any, x: Tensor, condition: Tensor) -> Tensor:
    return x + model.embed(torch.ones_like(condition))


def added(model: Any, x: Tensor, condition: Tensor) -> Tensor:
    return x + model.embed(condition)


def decides(model: Any, x: Tensor, condition: Tensor) -> Tensor:
    return x if condition.sum().item() > 0 else -x


def written_into(model: Any, x: Tensor, condition: Tensor) -> Tensor:
    held = torch.zeros_like(x)
    held[:, :3] = condition
    return x + held


def conditioned(use: Any, **options: Any) -> Loop:
    model = Conditioned(use)
    if use in (ignored, decides, written_into):
        model.embed.requires_grad_(False)
    loop = Loop(model, **options)

    def batch(index: int) -> dict[str, Tensor]:
        loop.condition = torch.randn(16, 3)
        return {"x": torch.randn(16, 8), "y": torch.randint(0, 4, (16,)), "condition": loop.condition}

    loop.batch = batch
    return loop


def body(loop: Any) -> Tensor:
    loop.optimizer.zero_grad()
    loss = cross_entropy(loop.model(loop.x, condition=loop.condition), loop.y)
    loss.backward()
    loop.optimizer.step()
    return loss


@pytest.mark.parametrize("use", [ignored, times_zero, times_zeros, in_place_of], ids=lambda use: use.__name__)
def test_an_input_that_a_model_ignores_is_named(use: Any):
    found = {one.rule: (one.step, one.where) for one in conditioned(use).run(body, 4)}
    assert found["input-without-influence"] == (2, "condition")


@pytest.mark.parametrize("use", [added, decides, written_into], ids=lambda use: use.__name__)
def test_an_input_that_it_uses_is_silent(use: Any):
    assert conditioned(use).run(body, 4) == []


def test_a_condition_that_is_dropped_now_and_then_is_silent():
    drops = iter([True, True, False, True, True, True])
    loop = conditioned(lambda *given: ignored(*given) if next(drops) else added(*given))
    assert loop.run(body, 6) == []


def corrected(use: Any) -> Any:
    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()
        target = loop.x[:, :4] * 2
        with torch.no_grad():
            new_target = target + 0.1 * loop.model(loop.x)
        chosen = use(target, new_target)
        (loop.model(loop.x) - chosen).square().mean().backward()
        loop.optimizer.step()

    return body


def test_a_target_that_is_computed_in_vain_is_a_warning():
    (found,) = Loop().run(corrected(lambda old, new: old))
    assert (found.rule, found.severity, found.where) == ("input-without-influence", "warning", "new_target")
    assert found.step == 2 and "nothing is computed from it" in found.evidence


@pytest.mark.parametrize(
    "use",
    [
        lambda old, new: new,
        lambda old, new: torch.where(old > 0, old, new),
        lambda old, new: (old, new.mean().item())[0],  # it is logged
        lambda old, new: new.view(4, -1).reshape_as(old),
    ],
)
def test_a_target_that_anything_is_computed_from_is_silent(use: Any):
    assert Loop().run(corrected(use)) == []
