"""Lightning's own `Trainer` under watch, for every kind of loop that it has."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from diagnostics import NonFiniteError

lightning = pytest.importorskip("lightning.pytorch")

from torchmetrics import MeanMetric  # noqa: E402

from diagnostics.integrations.lightning import WatchCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning",  # few workers, few batches
    "ignore:.*:UserWarning:lightning",  # a fit without validation
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # lightning with this torch
)


class Module(lightning.LightningModule):
    """Two layers; `fault` happens in the third batch, in the place that it names."""

    def __init__(self, fault: str | None = None) -> None:
        super().__init__()
        self.fault, self.batches = fault, 0
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)
        self.mean = MeanMetric(nan_strategy="disable")

    def loss(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        fault = self.fault if batch_idx == 2 else None
        hidden = self.first(x + 0.1 * torch.randn_like(x)).tanh()
        if fault == "forward":
            hidden = (hidden - 2).sqrt()  # here
        if fault == "backward":
            hidden = hidden + (hidden * 0).square().sum(1, keepdim=True).sqrt()  # here
        predicted = self.last(hidden)
        loss = (predicted - y).square().mean()
        if fault == "overflow":
            loss = loss * 1e25
        self.mean(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(x))
        self.log("mean", self.mean, on_epoch=True, batch_size=len(x))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Manual(Module):
    """Two optimizers in turn, the other's parameters toggled off, as a GAN has them."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch, batch_idx))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(layer.parameters(), lr=1e-2) for layer in (self.first, self.last)]


class Iterating(Module):
    """Takes its batch from the loader itself, as NeMo does."""

    def training_step(self, dataloader_iter: Any) -> Tensor:
        batch, batch_idx, _ = next(dataloader_iter)
        return self.loss(batch, batch_idx)


class Keeper(lightning.Callback):
    """Saves a checkpoint as the fit fails."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.place)


def fit(module: Any, *callbacks: Any, **options: Any) -> Any:
    """The trainer, after a fit of two epochs of six batches."""
    x, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(24, 1)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"max_epochs": 2, "accelerator": "cpu", **off, **options}
    trainer = lightning.Trainer(callbacks=list(callbacks), **options)
    torch.manual_seed(2)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=4))
    return trainer


def made(kind: type[Module], fault: str | None = None) -> Module:
    torch.manual_seed(1)
    return kind(fault)


KINDS: dict[str, tuple[type[Module], dict[str, Any]]] = {
    "automatic": (Module, {"gradient_clip_val": 0.5}),
    "accumulation": (Module, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1}),
    "bf16": (Module, {"precision": "bf16-mixed"}),
    "manual": (Manual, {"profiler": "simple"}),
    "iterator": (Iterating, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_fit_is_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    make, options = KINDS[kind]
    bare, watched = made(make), made(make)
    before = fit(bare, **options)
    callback = WatchCallback(incidents=tmp_path, statistics_every=3)
    after = fit(watched, callback, **options)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))
    assert after.callback_metrics == before.callback_metrics and len(after.callback_metrics) == 6
    assert after.global_step == before.global_step and callback.watch is not None
    assert "activation" in callback.watch.layers["first"] and not list(tmp_path.iterdir())
    assert "run" not in vars(after.fit_loop.epoch_loop.automatic_optimization)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["forward", "backward"])
def test_a_fault_stops_the_fit_with_its_origin(kind: str, fault: str, tmp_path: Path) -> None:
    make, options = KINDS[kind]
    module = made(make, fault)
    with pytest.raises(NonFiniteError) as caught:
        fit(module, WatchCallback(incidents=tmp_path), Keeper(tmp_path / "kept.ckpt"), **options)
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.cause, verdict.step) == (fault, "out_of_domain", 2)
    assert caught.value.is_restored and verdict.reproducible
    path, _, line = verdict.source.rpartition(":")
    assert path == __file__ and "# here" in Path(__file__).read_text().splitlines()[int(line) - 1]
    assert caught.value.incident == tmp_path / "step-00000003"

    kept = torch.load(tmp_path / "kept.ckpt", weights_only=False)
    assert all(torch.isfinite(tensor).all() for tensor in kept["state_dict"].values())
    # What a fit of the two batches before leaves behind.
    sound = made(make)
    trainer = fit(sound, Keeper(tmp_path / "unused"), **{**options, "max_epochs": 1, "limit_train_batches": 2})
    if kind != "accumulation":  # which steps at the end of an epoch
        assert kept["global_step"] == trainer.global_step
        assert all(torch.equal(kept["state_dict"][name], value) for name, value in sound.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_an_optimizer_that_overflows_is_named_and_undone(tmp_path: Path) -> None:
    module = made(Module, "overflow")
    with pytest.raises(NonFiniteError) as caught:
        fit(module, WatchCallback(incidents=None))
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.exception, verdict.step) == ("optimizer", "overflow", 2)
    assert caught.value.is_restored and caught.value.incident is None
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_bad_data_are_named_by_sample(tmp_path: Path) -> None:
    x = torch.randn(24, 4)
    x[9, 1] = torch.nan  # the second of the third batch
    module = made(Module)
    trainer = lightning.Trainer(
        callbacks=[WatchCallback(incidents=None)],
        max_epochs=1,
        accelerator="cpu",
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(module, DataLoader(TensorDataset(x, torch.zeros(24, 1)), batch_size=4))
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.parameter, verdict.samples, verdict.step) == ("data", "0", (1,), 2)


@pytest.mark.parametrize("kind", ["automatic", "manual"])
def test_a_step_may_be_left_out_where_the_fit_must_go_on(kind: str, tmp_path: Path) -> None:
    make, options = KINDS[kind]
    module, callback = made(make, "forward"), WatchCallback(incidents=tmp_path, policy="skip")
    with pytest.warns(RuntimeWarning, match="left out"):
        trainer = fit(module, callback, **options)
    assert callback.watch is not None
    assert callback.watch.num_left_out == 2  # one in each epoch
    assert trainer.global_step == (10 if kind == "automatic" else 20)
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000009"]


def test_wrong_options_are_refused_before_training() -> None:
    with pytest.raises(TypeError, match="statistics: not an option of Watch; those are statistics_every, "):
        WatchCallback(statistics=5)
    with pytest.raises(TypeError, match="model: not an option"):
        WatchCallback(model=None)


def test_without_lightning_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="needs Lightning, which is not installed: pip install lightning$"):
        runpy.run_path(str(Path(sys.modules[WatchCallback.__module__].__file__ or "")))
