"""Loops with accelerate."""

from typing import Any

import torch

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Net, classified, loader, samples


def accelerator_of(accumulation: int) -> Any:
    """On the CPU, without a tracker; `accumulation` micro-batches a step."""
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    plugin = GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False)
    return Accelerator(cpu=True, gradient_accumulation_plugin=plugin)


def model_is_zeroed(watching: Watching) -> None:
    """policy.zero_grad() in place of optimizer.zero_grad(), which accelerate makes wait: micro-batches are lost."""
    accelerator = accelerator_of(4)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader(samples(192)))
    watch = watching(model, optimizer, accelerator=accelerator)
    for batch in batches:
        with accelerator.accumulate(model):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    model.zero_grad()
                    loss = classified(model, batch)
                    accelerator.backward(loss)
                    optimizer.step()


def optimizer_not_prepared(watching: Watching) -> None:
    """The bare optimizer knows nothing of accumulate(): it steps on every micro-batch, with a quarter of the loss."""
    accelerator = accelerator_of(4)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, batches = accelerator.prepare(model, loader(samples(192)))
    watch = watching(model, optimizer, accelerator=accelerator)
    for batch in batches:
        with accelerator.accumulate(model):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()


CASES = (
    Case(
        "model_is_zeroed",
        "tatsu-lab/alpaca_farm#57",
        model_is_zeroed,
        Expected(1, ("gradients-cleared-too-early", "accumulation-count"), ("zero_grad", "encoder", "head")),
        host="accelerate",
        tags=("zero_grad", "accumulation"),
    ),
    Case(
        "optimizer_not_prepared",
        "huggingface/accelerate#435",
        optimizer_not_prepared,
        Expected(0, ("accumulation-count",), ("optimizer", "step", "accumulate", "AdamW")),
        host="accelerate",
        tags=("accumulation",),
    ),
)
