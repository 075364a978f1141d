"""DistributedDataParallel over gloo; each process has its samples."""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from diagnostics import Watch  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, Samples


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=eps)
    watch = Watch(model, optimizer, incidents=incidents)  # added
    for index, batch in enumerate(DataLoader(samples, batch_size=BATCH_SIZE)):
        for attempt in watch.attempts(batch=batch):  # added
            with attempt:  # added
                ends = (index + 1) % accumulation == 0
                with nullcontext() if ends else model.no_sync():
                    loss = model(**batch)["loss"] / accumulation
                    loss.backward()
                if ends:
                    optimizer.step()
                    optimizer.zero_grad()
