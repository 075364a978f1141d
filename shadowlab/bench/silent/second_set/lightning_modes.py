"""Loops in Lightning, a part of which runs in another mode than it should."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.lightning_loops import module_of, trainer_of
from shadowlab.bench.silent.nets import CLASSES, Seer, classified, loader, pictures, samples


class Encoder(nn.Module):
    """x (B, 8) -> features (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(8, 16), nn.Dropout(0.3)

    @classmethod
    def from_pretrained(cls) -> "Encoder":
        return cls().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(F.gelu(self.layer(x)))


class Classifier(nn.Module):
    """A pretrained encoder under a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.bert, self.head = Encoder.from_pretrained(), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.bert(x))
        return logits


def encoder_left_as_it_came(watching: Watching) -> None:
    """The encoder was loaded in evaluation mode, and Lightning gives each part of the model its own mode back."""
    trainer = trainer_of(watching)
    trainer.fit(module_of(Classifier()), loader(samples(64)), loader(samples(16, seed=1), shuffle=False))


def validated_by_the_training_loss(watching: Watching) -> None:
    """validation_step() switches to training mode, for the loss is computed there alone: the batch norm learns, too."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.train()
        loss = classified(self.net, batch)
        self.eval()
        accuracy = (self.net(batch["picture"]).argmax(-1) == batch["y"]).float().mean()
        self.log_dict({"val_loss": loss, "val_acc": accuracy})

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    module = module_of(Seer(), validation_step=validation_step, configure_optimizers=configure_optimizers)
    held = loader(pictures(16, seed=1), shuffle=False)
    trainer_of(watching, num_sanity_val_steps=0).fit(module, loader(pictures(64)), held)


CASES = (
    Case(
        "encoder_left_as_it_came",
        "autogluon/autogluon#4965",
        encoder_left_as_it_came,
        Expected(0, ("evaluation-mode-in-training",), ("bert", "dropout", "Encoder", "eval")),
        host="lightning",
        tags=("mode",),
    ),
    Case(
        "validated_by_the_training_loss",
        "airctic/icevision#1100",
        validated_by_the_training_loss,
        Expected(
            7, ("training-mode-in-evaluation",), ("backbone", "backbone.1", "net", "Seer", "Module", "train", "eval")
        ),
        host="lightning",
        tags=("mode",),
    ),
)
