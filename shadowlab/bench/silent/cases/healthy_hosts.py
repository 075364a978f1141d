"""Healthy loops that accelerate, Lightning, the Trainer of transformers and DDP own."""

import tempfile
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.cases.accelerated import accelerator_of
from shadowlab.bench.silent.cases.lightning_loops import module_of, trainer_of
from shadowlab.bench.silent.cases.trainer_loops import Wrapped, accuracy, train
from shadowlab.bench.silent.cases.two_ranks import scheduled, shared
from shadowlab.bench.silent.nets import Net, classified, loader, samples


def accelerate_accumulates(watching: Watching) -> None:
    """accelerate as its manual shows it, with accumulation, clipping and a schedule."""
    accelerator = accelerator_of(2)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=10)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(samples(160)), scheduler)
    watch = watching(model, optimizer, accelerator=accelerator)
    for batch in batches:
        with accelerator.accumulate(model):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()


def lightning_validates(watching: Watching) -> None:
    """Lightning with validation, accumulation, clipping, a schedule, and the best checkpoint by accuracy."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "enable_checkpointing": True}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelCheckpoint(folder, monitor="val_acc", mode="max")
        trainer = trainer_of(watching, [checkpoint], default_root_dir=folder, **options)
        module = module_of(Net(dropout=0.1), configure_optimizers=configure_optimizers)
        trainer.fit(module, loader(samples(64)), loader(samples(16, seed=1), shuffle=False))


def trainer_keeps_the_best(watching: Watching) -> None:
    """The Trainer of transformers with accumulation, evaluation, and the best model by accuracy at the end."""
    train(
        watching,
        Wrapped(),
        gradient_accumulation_steps=2,
        warmup_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        greater_is_better=True,
        compute_metrics=accuracy,
    )


def two_ranks_accumulate(watching: Watching) -> None:
    """DDP with two micro-batches a step, the first under no_sync; only rank 0 validates."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for index, batch in enumerate(shared()):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                if index % 2 == 0:
                    with model.no_sync():
                        (classified(model, batch) / 2).backward()
                else:
                    (classified(model, batch) / 2).backward()
                    optimizer.step()
                    optimizer.zero_grad()


def scheduled_for_all_processes(watching: Watching) -> None:
    """accelerate as it is meant: the schedule has the steps of one process, and each of two steps it twice."""
    scheduled(watching, steps=16)


CASES = (
    Case(
        "accelerate_accumulates",
        "https://huggingface.co/docs/accelerate/usage_guides/gradient_accumulation",
        accelerate_accumulates,
        host="accelerate",
    ),
    Case(
        "lightning_validates",
        "https://lightning.ai/docs/pytorch/stable/common/checkpointing.html",
        lightning_validates,
        host="lightning",
    ),
    Case(
        "trainer_keeps_the_best",
        "https://huggingface.co/docs/transformers/main_classes/trainer",
        trainer_keeps_the_best,
        host="trainer",
    ),
    Case(
        "two_ranks_accumulate",
        "https://pytorch.org/docs/stable/notes/ddp.html",
        two_ranks_accumulate,
        host="ddp",
    ),
    Case(
        "scheduled_for_all_processes",
        "huggingface/accelerate#1013",
        scheduled_for_all_processes,
        host="ddp",
    ),
)
