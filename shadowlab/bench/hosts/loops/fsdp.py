"""FSDP2, `fully_shard`, over gloo; each process has its samples."""

from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader

from diagnostics import Watch  # added
from shadowlab.bench.hosts.net import BATCH_SIZE, Samples


def train(net: nn.Module, samples: Samples, accumulation: int, eps: float, incidents: Path) -> None:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    model = fully_shard(net, mesh=mesh)
    assert isinstance(model, FSDPModule)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, eps=eps)
    watch = Watch(net, optimizer, incidents=incidents)  # added
    for index, batch in enumerate(DataLoader(samples, batch_size=BATCH_SIZE)):
        for attempt in watch.attempts(batch=batch):  # added
            with attempt:  # added
                ends = (index + 1) % accumulation == 0
                model.set_requires_gradient_sync(ends)
                loss = net(**batch)["loss"] / accumulation
                loss.backward()
                if ends:
                    optimizer.step()
                    optimizer.zero_grad()
