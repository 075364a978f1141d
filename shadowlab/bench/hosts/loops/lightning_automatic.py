"""Lightning, automatic optimization."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diagnostics.integrations.lightning import WatchCallback  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, QUIET, Samples


class Module(LightningModule):
    def __init__(self, net: nn.Module, eps: float) -> None:
        super().__init__()
        self.net, self.eps = net, eps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(**batch)["loss"]
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, eps=self.eps)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    callbacks: list[Any] = []
    callbacks.append(WatchCallback(incidents=incidents))  # added
    trainer = Trainer(
        callbacks=callbacks, max_epochs=1, accumulate_grad_batches=accumulation, gradient_clip_val=1.0, **QUIET
    )
    trainer.fit(Module(net, eps), DataLoader(samples, batch_size=BATCH_SIZE))
