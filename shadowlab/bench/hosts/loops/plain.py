"""A plain PyTorch loop."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from diagnostics import Watch  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, Samples


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, eps=eps)
    watch = Watch(net, optimizer, incidents=incidents)  # added
    for index, batch in enumerate(DataLoader(samples, batch_size=BATCH_SIZE)):
        for attempt in watch.attempts(batch=batch):  # added
            with attempt:  # added
                loss = net(**batch)["loss"] / accumulation
                loss.backward()
                if (index + 1) % accumulation == 0:
                    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
