"""The loop of diffusers' training scripts: noise drawn in the step, clipping, a scheduler, averaged weights."""

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader

from diagnostics import Watch  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, Samples


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    made = torch.optim.AdamW(net.parameters(), lr=1e-2, eps=eps)
    warm_up = get_scheduler("constant_with_warmup", optimizer=made, num_warmup_steps=2)
    loader = DataLoader(samples, batch_size=BATCH_SIZE)
    model, optimizer, loader, lr_scheduler = accelerator.prepare(net, made, loader, warm_up)
    average = EMAModel(net.parameters())
    global_step = 0
    watch = Watch(model, optimizer, accelerator=accelerator, incidents=incidents)  # added
    for batch in loader:
        for attempt in watch.attempts(batch=batch):  # added
            with attempt, accelerator.accumulate(model):  # was: with accelerator.accumulate(model):
                noise = torch.randn_like(batch["x"])
                loss = model(**batch | {"x": batch["x"] + 0.1 * noise})["loss"]
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.step(net.parameters())
            global_step += 1
