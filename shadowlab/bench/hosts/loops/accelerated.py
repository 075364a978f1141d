"""accelerate's own example: `accumulate` around the body."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from diagnostics import Watch  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, Samples


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    made = torch.optim.AdamW(net.parameters(), lr=1e-2, eps=eps)
    model, optimizer, loader = accelerator.prepare(net, made, DataLoader(samples, batch_size=BATCH_SIZE))
    watch = Watch(model, optimizer, accelerator=accelerator, incidents=incidents)  # added
    for batch in loader:
        for attempt in watch.attempts(batch=batch):  # added
            with attempt, accelerator.accumulate(model):  # was: with accelerator.accumulate(model):
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
