"""Loops that the Trainer of transformers owns."""

import copy
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import CLASSES, Net, samples


class Wrapped(nn.Module):
    """As the trainer wants a model: takes labels, gives loss and logits."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or Net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def rows(number: int = 32, seed: int = 0) -> list[dict[str, Tensor]]:
    """Samples with the names that the trainer expects."""
    found = samples(number, seed)
    return [{"x": row["x"], "labels": row["y"]} for row in map(found.__getitem__, range(number))]


def train(
    watching: Watching, model: nn.Module, *, train_rows: Any = None, optimizers: Any = None, **options: Any
) -> Any:
    """Two epochs of four steps on the CPU; options of TrainingArguments, and `compute_metrics` and `compute_loss`."""
    from transformers import TrainingArguments

    base = watching.trainer()
    methods = {name: options.pop(name) for name in ("compute_loss",) if name in options}
    compute_metrics = options.pop("compute_metrics", None)
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            **options,
        }
        arguments = TrainingArguments(folder, **given)
        extra = {} if optimizers is None else {"optimizers": optimizers}
        own = type("OwnTrainer", (base,), methods)
        trainer = own(
            model,
            arguments,
            train_dataset=train_rows or rows(),
            eval_dataset=rows(16, seed=1),
            compute_metrics=compute_metrics,
            **extra,
        )
        return trainer.train()


def accuracy(prediction: Any) -> dict[str, float]:
    """In [0, 1]."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def worst_model_at_the_end(watching: Watching) -> None:
    """metric_for_best_model="accuracy" with greater_is_better=False."""
    train(
        watching,
        Wrapped(),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        greater_is_better=False,
        compute_metrics=accuracy,
    )


def loss_is_a_number(watching: Watching) -> None:
    """compute_loss averages the losses of its terms as floats, and makes a tensor of them again."""

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        terms = [float(outputs["loss"]), 0.01 * float(outputs["logits"].square().mean())]
        loss = torch.tensor(sum(terms), requires_grad=True)
        return (loss, outputs) if return_outputs else loss

    train(watching, Wrapped(), compute_loss=compute_loss)


def optimizer_of_another_head(watching: Watching) -> None:
    """The optimizer was made for the pretrained model, then the model got the head of this task."""
    pretrained = Wrapped()
    optimizer = torch.optim.AdamW(pretrained.parameters(), lr=1e-2)
    model = copy.copy(pretrained)
    model.net.head = nn.Linear(16, CLASSES)
    train(watching, model, optimizers=(optimizer, None))


CASES = (
    Case(
        "worst_model_at_the_end",
        "huggingface/transformers#31142",
        worst_model_at_the_end,
        Expected(0, ("metric-direction",), ("accuracy", "greater_is_better", "eval_accuracy", "metric_for_best_model")),
        host="trainer",
        tags=("metric", "marigold"),
    ),
    Case(
        "loss_is_a_number",
        "ronghuaiyang/arcface-pytorch#56",
        loss_is_a_number,
        Expected(0, ("loss-without-gradient", "parameter-without-gradient"), ("loss", "backward", "net")),
        host="trainer",
        tags=("graph",),
    ),
    Case(
        "optimizer_of_another_head",
        "huggingface/transformers#3532",
        optimizer_of_another_head,
        Expected(
            0, ("optimizer-holds-stranger", "parameter-without-optimizer", "parameter-stands-still"), ("net.head",)
        ),
        host="trainer",
        tags=("optimizer",),
    ),
)
