"""Hugging Face's own `Trainer` under watch."""

import gc
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError

transformers = pytest.importorskip("transformers")

from diagnostics.integrations.transformers import WatchMixin  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pin_memory.*:UserWarning",  # a machine without an accelerator
)


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """Trainer and accelerate collect garbage at every start; not among all that is loaded here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Net(nn.Module):
    """Two layers, dropout and a running statistic; a sample with a negative `gate` has a root that does not exist."""

    def __init__(self, *, is_plain: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)
        self.middle = nn.Tanh() if is_plain else nn.Sequential(nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, x: Tensor, labels: Tensor, gate: Tensor) -> dict[str, Tensor]:
        hidden = self.middle(self.first(x))
        return {"loss": (self.last(hidden) * gate.sqrt() - labels).square().mean()}


def samples(*, bad: int | None = None) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    made = [{"x": torch.randn(4, generator=random), "labels": torch.zeros(1), "gate": torch.ones(1)} for _ in range(32)]
    if bad is not None:
        made[bad]["gate"].fill_(-1.0)
    return made


class Bare(transformers.Trainer):
    """As users write theirs: a loss of its own, counted."""

    num_calls = 0

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        return super().compute_loss(model, {**inputs, "labels": inputs.pop("labels")}, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        return loss


class Watched(WatchMixin, Bare):
    watch_options: ClassVar = {"incidents": None, "statistics_every": 3}


def trainer_of(kind: type[Bare], folder: Path, data: list[dict[str, Tensor]], **options: Any) -> Any:
    """Eight batches of four an epoch, two of which make a step."""
    arguments = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.5,
        "warmup_steps": 2,
        "train_sampling_strategy": "sequential",
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    own = {name: options.pop(name) for name in ("callbacks", "eval_dataset") if name in options}
    torch.manual_seed(1)
    net = Net(is_plain=options.pop("is_plain", False))
    made = transformers.TrainingArguments(str(folder), **arguments | options)
    return kind(net, made, train_dataset=data, **own)


def weights(trainer: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in trainer.model.state_dict().values()]


def logged(trainer: Any) -> list[dict[str, float]]:
    return [
        {k: v for k, v in line.items() if "runtime" not in k and "second" not in k}
        for line in trainer.state.log_history
    ]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_healthy_training_is_the_same_bit_for_bit(bf16: bool, tmp_path: Path) -> None:
    options = {"eval_strategy": "epoch", "eval_dataset": samples()[:8], "bf16": bf16}
    bare, watched = (trainer_of(kind, tmp_path, samples(), **options) for kind in (Bare, Watched))
    for trainer in (bare, watched):
        torch.manual_seed(2)  # of dropout
        trainer.train()
    assert same(weights(bare), weights(watched)) and logged(bare) == logged(watched)
    assert watched.num_calls == bare.num_calls
    assert "activation" in watched.watch.layers["first"]
    assert "training_step" not in vars(watched)
    assert watched.optimizer.step.__qualname__ == bare.optimizer.step.__qualname__


def test_training_goes_on_from_a_checkpoint_that_is_saved_after_the_error(tmp_path: Path) -> None:
    whole = trainer_of(Bare, tmp_path / "whole", samples(), is_plain=True)
    whole.train()

    failing = trainer_of(Watched, tmp_path / "failing", samples(bad=22), is_plain=True)  # the second batch of a step
    failing.watch_options = {"incidents": tmp_path / "incidents"}
    with pytest.raises(NonFiniteError) as caught:
        failing.train()
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.op, verdict.samples, verdict.step) == ("forward", "sqrt", (2,), 5)
    assert caught.value.is_restored and caught.value.incident == tmp_path / "incidents" / "step-00000006"
    assert (failing.state.global_step, failing.num_calls) == (2, 5)
    assert torch.isfinite(failing._tr_loss)
    failing._save_checkpoint(failing.model, None)

    resumed = trainer_of(Watched, tmp_path / "failing", samples(), is_plain=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "failing" / "checkpoint-2"))
    assert resumed.state.global_step == whole.state.global_step
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("bad", [18, 22])  # in the first batch of a step, in the second
def test_a_step_may_be_left_out_where_the_training_must_go_on(bad: int, tmp_path: Path) -> None:
    trainer = trainer_of(Watched, tmp_path, samples(bad=bad), num_train_epochs=1, logging_steps=1)
    trainer.watch_options = {"incidents": None, "policy": "skip"}
    with pytest.warns(RuntimeWarning, match="left out"):
        trainer.train()
    assert (trainer.watch.num_left_out, trainer.state.global_step) == (1, 4)
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer))
    rates = [line["learning_rate"] for line in logged(trainer) if "learning_rate" in line]
    stood_still = rates[2] == rates[3]
    assert stood_still == (bad == 22)  # with the first batch left out, the second makes the step


class Interfering(transformers.TrainerCallback):
    """Something of the user's between the gradients and the optimizer."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.act(kwargs["model"])


def spoil(model: nn.Module) -> None:
    model.last.weight.grad.div_(0.0 * model.last.weight.grad.norm())  # here


def fail(model: nn.Module) -> None:
    raise KeyError("of the callback")


def test_what_a_callback_does_to_the_gradients_is_repeated_and_named(tmp_path: Path) -> None:
    trainer = trainer_of(Watched, tmp_path, samples(), callbacks=[Interfering(spoil)])
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    verdict = caught.value.verdict
    assert (verdict.exception, verdict.step, verdict.reproducible) == ("divide_by_zero", 5, True)
    path, _, line = (verdict.source or "").rpartition(":")
    assert path == __file__ and "# here" in Path(__file__).read_text().splitlines()[int(line) - 1]


def test_an_error_between_the_two_ends_of_a_step_is_the_same_without_a_watch(tmp_path: Path) -> None:
    trainer = trainer_of(Watched, tmp_path, samples(), callbacks=[Interfering(fail)], num_train_epochs=1)
    backward = torch.autograd.backward
    with pytest.raises(KeyError, match="of the callback") as caught:
        trainer.train()
    assert caught.value.__cause__ is None
    assert torch.autograd.backward is backward and "training_step" not in vars(trainer)
    trainer.pop_callback(Interfering)
    trainer.train()  # again, with a watch of its own
    assert trainer.state.global_step == 4


def test_what_cannot_work_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Wrong: WatchMixin goes first, as in `class Wrong\(WatchMixin, Trainer\)`"):
        type("Wrong", (transformers.Trainer, WatchMixin), {})
    with pytest.raises(TypeError, match="statistics: not an option of Watch"):
        type("Mistyped", (WatchMixin, transformers.Trainer), {"watch_options": {"statistics": 1}})


def test_without_transformers_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'needs transformers, which is not installed: pip install "transformers\['):
        runpy.run_path(str(Path(sys.modules[WatchMixin.__module__].__file__ or "")))
