"""Loops that Lightning owns."""

from typing import Any

import torch
from torch import Tensor, nn

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Net, classified, loader, samples

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer_of(watching: Watching, callbacks: Any = (), **options: Any) -> Any:
    """Lightning's trainer under the watch, of two epochs."""
    from lightning.pytorch import Trainer

    options = {"max_epochs": 2, "enable_checkpointing": False, **QUIET, **options}
    return Trainer(callbacks=[*watching.lightning(), *callbacks], **options)


def module_of(net: nn.Module, **methods: Any) -> Any:
    """A LightningModule around a network, with methods of its own."""
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = classified(self.net, batch)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            logits = self.net(batch["x"])
            self.log("val_loss", nn.functional.cross_entropy(logits, batch["y"]))
            self.log("val_acc", (logits.argmax(-1) == batch["y"]).float().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return type("Module", (Module,), methods)()


def returns_nothing(watching: Watching) -> None:
    """training_step logs its loss and returns None: Lightning leaves backward and step out."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        loss = classified(self.net, batch)
        self.log("train_loss", loss)

    trainer_of(watching).fit(module_of(Net(), training_step=training_step), loader(samples(64)))


def manual_without_a_step(watching: Watching) -> None:
    """Manual optimization: zero_grad, manual_backward, and no step."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = classified(self.net, batch)
        self.manual_backward(loss)
        return loss

    module = module_of(Net(), training_step=training_step, automatic_optimization=False)
    trainer_of(watching).fit(module, loader(samples(64)))


def only_the_head_is_configured(watching: Watching) -> None:
    """configure_optimizers names the head; the encoder was to be trained, too."""

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.AdamW(self.net.head.parameters(), lr=1e-2)

    module = module_of(Net(), configure_optimizers=configure_optimizers)
    trainer_of(watching).fit(module, loader(samples(64)))


def checkpoint_of_the_worst(watching: Watching) -> None:
    """ModelCheckpoint(monitor="val_acc") minimises, as it does unless told otherwise."""
    import tempfile

    from lightning.pytorch.callbacks import ModelCheckpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelCheckpoint(folder, monitor="val_acc", save_top_k=1)
        trainer = trainer_of(watching, [checkpoint], enable_checkpointing=True, default_root_dir=folder)
        trainer.fit(module_of(Net()), loader(samples(64)), loader(samples(16, seed=1), shuffle=False))


CASES = (
    Case(
        "returns_nothing",
        "https://github.com/ChaosAIVision/Light-Diffusion",
        returns_nothing,
        Expected(
            0,
            ("no-optimizer-step", "loss-without-gradient", "parameter-without-gradient"),
            ("training_step", "optimizer", "step", "backward", "loss", "net", "AdamW"),
        ),
        host="lightning",
        tags=("step", "light-diffusion"),
    ),
    Case(
        "manual_without_a_step",
        "zhaoyuzhi/deepfillv2#6",
        manual_without_a_step,
        Expected(0, ("no-optimizer-step",), ("optimizer", "step", "net", "AdamW")),
        host="lightning",
        tags=("step",),
    ),
    Case(
        "only_the_head_is_configured",
        "ronghuaiyang/arcface-pytorch#20",
        only_the_head_is_configured,
        Expected(0, ("parameter-without-optimizer", "parameter-stands-still"), ("encoder",)),
        host="lightning",
        tags=("optimizer",),
    ),
    Case(
        "checkpoint_of_the_worst",
        "jbohnslav/deepethogram#182",
        checkpoint_of_the_worst,
        Expected(0, ("metric-direction",), ("val_acc", "ModelCheckpoint")),
        host="lightning",
        tags=("metric", "marigold"),
    ),
)
