"""FSDP2: parameters, gradients, optimizer states and EMA split evenly over processes (torch's `fully_shard`).

PyTorch FSDP: Zhao et al., arXiv 2304.11277; per-parameter sharding: pytorch#114299.
"""

from collections.abc import Iterable

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def sharding_units(unet: nn.Module) -> list[nn.Module]:
    """The modules whose parameters are gathered together, inner ones first; the last is the UNet with the rest."""
    blocks = [module for module in unet.modules() if isinstance(module, (BasicTransformerBlock, ResnetBlock2D))]
    return [*blocks, unet]


def shard(unet: nn.Module, mesh: DeviceMesh) -> None:
    """Shard in place, before an optimizer exists. Every unit is gathered for its forward and again for its backward."""
    for unit in sharding_units(unet):
        # The root, too: between forward and backward its parameters must be the optimizer's.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; any other as it is. A collective: every process must call, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_into(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy tensors of equal sharding, each process its own part."""
    torch._foreach_copy_([local(one) for one in targets], [local(one) for one in sources])
