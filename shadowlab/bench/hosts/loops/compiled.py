"""A plain loop whose model is compiled."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from diagnostics import Watch  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, Samples


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    model: Any = torch.compile(net, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=eps)
    watch = Watch(model, optimizer, incidents=incidents)  # added
    for index, batch in enumerate(DataLoader(samples, batch_size=BATCH_SIZE)):
        for attempt in watch.attempts(batch=batch):  # added
            with attempt:  # added
                loss = model(**batch)["loss"] / accumulation
                loss.backward()
                if (index + 1) % accumulation == 0:
                    optimizer.step()
                    optimizer.zero_grad()
