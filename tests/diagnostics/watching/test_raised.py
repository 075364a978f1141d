"""A step that ends in an exception: explained where a non-finite value caused it, left alone where none did."""

import math
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.loops import Net
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")


def normal(x: Tensor) -> None:
    torch.distributions.Normal(x.sqrt(), 1.0)


def categorical(x: Tensor) -> None:
    torch.distributions.Categorical(logits=x.sqrt())


def multinomial(x: Tensor) -> None:
    torch.multinomial(x.sqrt(), 1)


def cholesky(x: Tensor) -> None:
    torch.linalg.cholesky(x.sqrt().T @ x.sqrt())


def eigenvalues(x: Tensor) -> None:
    torch.linalg.eigvalsh(x.sqrt().T @ x.sqrt())


def integer(x: Tensor) -> None:
    int(x.sqrt().mean())


def lookup(x: Tensor) -> None:
    nn.functional.embedding(x.sqrt().long(), torch.zeros(3, 2))


def assertion(x: Tensor) -> None:
    assert torch.isfinite(x.sqrt()).all()


def own(x: Tensor) -> None:
    value = x.sqrt().mean().item()
    if value != value:
        raise RuntimeError("training has diverged")


def rounded(x: Tensor) -> None:
    round(x.sqrt().mean().item())


def from_another(x: Tensor) -> None:
    try:
        integer(x)
    except ValueError as error:
        raise RuntimeError("the step failed") from error


def through_numpy(x: Tensor) -> None:
    y = x.sqrt().detach().numpy()
    if not (y > -1).all():
        raise ValueError("out of range")


FAULTS: tuple[Callable[[Tensor], None], ...] = (
    *(normal, categorical, multinomial, cholesky, eigenvalues, integer, lookup, assertion, own, rounded),
    *(through_numpy, from_another),
)


class Raising:
    """A loop whose step hands a tensor to a function that raises where it is below zero."""

    def __init__(self, fault: Callable[[Tensor], None], where: str, **options: Any) -> None:
        self.model, self.fault, self.where = Net(norm=nn.BatchNorm1d(6)), fault, where
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.watch = Watch(self.model, self.optimizer, **{"incidents": None} | options)
        self.num_runs = 0

    def __call__(self) -> Tensor:
        self.num_runs += 1
        y = self.model(torch.randn(3, 4))
        if self.where == "loss":
            self.fault((y * 0 - 4).detach())
        loss = y.square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.where == "backward":
            self.fault(self.model.last.weight.grad[:, :3] * 0 - 4)
        self.optimizer.step()
        if self.where == "after":
            self.fault((self.model.last.weight[:, :3] * 0 - 4).detach())
        return loss

    def state(self) -> dict[str, bytes]:
        return bits_of(state_of([self.model], self.optimizer)) | {"random": bytes(torch.get_rng_state())}


@pytest.fixture(autouse=True)
def _distributions_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile, once used, turns their checks off in the whole process."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)


def explained(loop: Raising, cause: type[Exception] = Exception) -> NonFiniteError:
    """The step runs twice, and everything is afterwards as before it."""
    before, loop.num_runs = loop.state(), 0
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(loop)
    assert isinstance(caught.value.__cause__, cause)
    assert any(frame.name == "__call__" for frame in traceback.extract_tb(caught.value.__cause__.__traceback__))
    assert loop.num_runs == 2 and "raised" in caught.value.verdict.witness
    assert not caught.value.is_restored or loop.state() == before
    return caught.value


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_exception_that_a_nan_caused_is_explained(fault: Callable[[Tensor], None]):
    error = explained(Raising(fault, "loss"))
    verdict = error.verdict
    assert (verdict.op, verdict.exception, verdict.cause) == ("sqrt", "invalid", "out_of_domain"), error
    assert verdict.source is not None and verdict.source.startswith(f"{__file__}:")
    assert verdict.reproducible and error.is_restored


@pytest.mark.parametrize("undo", ["auto", "always"])
@pytest.mark.parametrize("where", ["backward", "after"])
def test_it_may_be_raised_anywhere_in_the_step(where: str, undo: Any):
    """After an optimizer has moved, nothing was kept unless copies are: that is said, and learned."""
    loop = Raising(lambda x: None, where, undo=undo)
    loop.watch.step(loop)
    loop.fault = assertion
    error = explained(loop, AssertionError)
    assert error.verdict.op == "sqrt"
    assert error.is_restored is (where == "backward" or undo == "always")
    loop.fault = assertion
    assert explained(loop, AssertionError).is_restored


def test_clipping_that_minds_a_bad_norm():
    loop = Raising(lambda x: None, "backward")

    def clip(x: Tensor) -> None:
        for parameter in loop.model.parameters():
            parameter.grad.mul_(3e38).mul_(2)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0, error_if_nonfinite=True)

    loop.watch.step(loop)
    loop.fault = clip
    error = explained(loop, RuntimeError)
    assert (error.verdict.exception, error.verdict.op) == ("overflow", "mul"), error


def test_an_optimizer_of_another_make_that_raises():
    class Careful(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    if not math.isfinite((parameter / group["scale"]).sum().item()):
                        raise ArithmeticError("update lost")

    loop = Raising(lambda x: None, "never")
    loop.optimizer = Careful([{"params": list(loop.model.parameters()), "scale": 1.0}], lr=0.1)
    loop.watch = Watch(loop.model, loop.optimizer, incidents=None)
    loop.watch.step(loop)
    loop.optimizer.param_groups[0]["scale"] = 0.0
    error = explained(loop, ArithmeticError)
    assert (error.verdict.phase, error.verdict.exception) == ("optimizer", "divide_by_zero"), error


# What is none of the watch's business


class Halt(BaseException):
    """Of the loop's own make, and no error."""


def spoiled(kind: Callable[[], BaseException]) -> Callable[[Tensor], None]:
    def fault(x: Tensor) -> None:
        nan = x * math.nan  # a sign that there may be something to explain
        raise kind() if nan is not None else ValueError

    return fault


@pytest.mark.parametrize(
    "kind",
    [
        *(KeyboardInterrupt, Halt, GeneratorExit),
        *(StopIteration, FileNotFoundError, KeyError, TypeError, AttributeError, MemoryError, NotImplementedError),
        *(ConnectionResetError, torch.OutOfMemoryError, UserWarning, UnicodeError),
    ],
)
def test_what_no_number_causes_is_not_repeated(kind: type[BaseException]):
    loop = Raising(spoiled(kind), "loss")
    with pytest.raises(kind) as caught:
        loop.watch.step(loop)
    assert type(caught.value) is kind and loop.num_runs == 1
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def shapes(x: Tensor) -> None:
    x @ torch.zeros(5, 5)


def own_words(x: Tensor) -> None:
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)
    raise ValueError(f"no such class: {(x + mask).softmax(-1).shape}")


def too_far(x: Tensor) -> None:
    best = math.inf  # as loops have it
    [best][3]


@pytest.mark.parametrize("fault", [shapes, own_words, too_far])
def test_an_exception_of_finite_numbers_passes_and_is_not_repeated(fault: Callable[[Tensor], None]):
    loop = Raising(fault, "backward")
    with pytest.raises((RuntimeError, ValueError, IndexError)) as caught:
        loop.watch.step(loop)
    assert loop.num_runs == 1 and not isinstance(caught.value, NonFiniteError)
    own = [frame for frame in traceback.extract_tb(caught.value.__traceback__) if frame.filename == __file__]
    assert own[-1].name == fault.__name__  # the first steps are followed, and torch's frames come after
    assert loop.model.last.weight.grad is not None  # as the exception left it


def in_attempts(loop: Raising) -> None:
    for attempt in loop.watch.attempts():
        with attempt:
            loop()


@pytest.mark.parametrize("undo", ["auto", "always"])
@pytest.mark.parametrize("form", ["step", "attempts"])
def test_a_suspicion_that_turns_out_wrong_leaves_everything_as_the_exception_did(form: str, undo: Any):
    """The step speaks of infinity, so it is repeated once; it was all finite, so its own exception goes on."""

    def fault(x: Tensor) -> None:
        raised.append(ValueError("infinity is no number of steps"))
        raise raised[-1]

    def bare(loop: Raising) -> Any:
        try:
            loop()
        except ValueError:
            return loop.state(), [p.grad.clone() for p in loop.model.parameters()]

    def watched(loop: Raising) -> Any:
        with pytest.raises(ValueError, match="infinity") as caught:
            loop.watch.step(loop) if form == "step" else in_attempts(loop)
        assert caught.value is raised[0] and caught.value.__cause__ is None
        assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "fault"
        assert loop.num_runs == 2
        return loop.state(), [p.grad for p in loop.model.parameters()]

    results = []
    for run in (bare, watched):
        torch.manual_seed(0)
        raised: list[ValueError] = []
        loop = Raising(fault, "after" if undo == "always" else "backward", undo=undo)
        results.append(run(loop))
    assert results[0][0] == results[1][0]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(one, other)
    loop.fault = lambda x: None
    loop.watch.step(loop)


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("factor", [1.0, math.nan])
def test_a_step_that_leaves_the_process_is_explained_where_it_looked_at_a_bad_value(
    factor: float, is_replaced: bool, monkeypatch: pytest.MonkeyPatch
):
    """As torchvision's reference loops do, also under wandb, which replaces `sys.exit`; any other exit is nobody's
    business."""
    leave = sys.exit
    if is_replaced:
        monkeypatch.setattr(sys, "exit", lambda code=None: leave(code))

    def fault(x: Tensor) -> None:
        value = (x * factor).mean()
        sys.exit(f"loss is {value}")

    loop = Raising(fault, "loss")
    with pytest.raises(SystemExit if factor == 1 else NonFiniteError) as caught:
        loop.watch.step(loop)
    assert loop.num_runs == (1 if factor == 1 else 2)
    assert factor == 1 or isinstance(caught.value.__cause__, SystemExit)


def test_a_bad_batch_whose_own_check_raises():
    loop, batch = Raising(lambda x: None, "loss"), {"x": torch.randn(3, 4)}
    batch["x"][1, 2] = numpy.nan

    def step() -> None:
        loop.model(batch["x"])
        if torch.isnan(batch["x"]).any():
            raise ValueError("bad pixels")

    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(step, batch=batch)
    assert (caught.value.verdict.phase, caught.value.verdict.parameter) == ("data", "x")
    assert caught.value.verdict.samples == (1,)


def test_of_several_ranks_one_does_not_repeat_its_step_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diagnostics.watching.attempts.num_ranks", lambda: 2)
    loop = Raising(assertion, "loss")
    with pytest.raises(AssertionError):
        loop.watch.step(loop)
    assert loop.num_runs == 1
