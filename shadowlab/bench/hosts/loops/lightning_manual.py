"""Lightning, manual optimization."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from diagnostics.integrations.lightning import WatchCallback  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, QUIET, Samples


class Module(LightningModule):
    automatic_optimization = False

    def __init__(self, net: nn.Module, accumulation: int, eps: float) -> None:
        super().__init__()
        self.net, self.accumulation, self.eps = net, accumulation, eps

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.net(**batch)["loss"] / self.accumulation)
        if (batch_idx + 1) % self.accumulation == 0:
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, eps=self.eps)


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    callbacks: list[Any] = []
    callbacks.append(WatchCallback(incidents=incidents))  # added
    trainer = Trainer(callbacks=callbacks, max_epochs=1, **QUIET)
    trainer.fit(Module(net, accumulation, eps), DataLoader(samples, batch_size=BATCH_SIZE))
