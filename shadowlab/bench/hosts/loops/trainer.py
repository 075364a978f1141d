"""The `Trainer` of Hugging Face's transformers."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from torch import nn
from transformers import Trainer, TrainingArguments

from diagnostics.integrations.transformers import WatchMixin  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, Samples


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    class OwnTrainer(WatchMixin, Trainer):  # was: class OwnTrainer(Trainer):
        """A trainer as users derive it, or as it is."""

        watch_options: ClassVar = {"incidents": incidents}  # added

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH_SIZE,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            learning_rate=1e-2,
            adam_epsilon=eps,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        OwnTrainer(net, arguments, train_dataset=samples).train()
