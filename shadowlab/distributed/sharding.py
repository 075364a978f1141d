"""FSDP2: parameters, gradients, optimizer states and EMA split evenly over processes (torch's `fully_shard`).

PyTorch FSDP: Zhao et al., arXiv 2304.11277; per-parameter sharding: pytorch#114299.
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def sharding_units(unet: nn.Module) -> list[nn.Module]:
    """The modules whose parameters are gathered together, inner ones first; the last is the UNet with the rest."""
    from diffusers.models.attention import BasicTransformerBlock  # here: seconds that `--help` and `runs` need not wait
    from diffusers.models.resnet import ResnetBlock2D

    blocks = [module for module in unet.modules() if isinstance(module, (BasicTransformerBlock, ResnetBlock2D))]
    return [*blocks, unet]


def shard(unet: nn.Module, mesh: DeviceMesh) -> None:
    """Shard in place, before an optimizer exists. Every unit is gathered for its forward and again for its backward."""
    for unit in sharding_units(unet):
        # The root, too: between forward and backward its parameters must be the optimizer's.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor of any shape, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of some parameter."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@torch.no_grad()
def whole(tensor: Tensor, like: Tensor) -> Tensor:
    """All of a sharded tensor, in its whole shape: of a DTensor, or of the local part of one; a scalar as it is.

    A collective: every process must call, in the same order.

    Args:
        like: the parameter that `tensor` belongs to.
    """
    if not isinstance(tensor, DTensor) and isinstance(like, DTensor) and tensor.ndim == like.ndim > 0:
        # Shapes are named: parts may differ in size.
        mesh, placements = like.device_mesh, like.placements
        tensor = DTensor.from_local(tensor, mesh, placements, shape=like.shape, stride=like.stride())
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign(target: Tensor, value: Tensor, like: Tensor) -> None:
    """Copy a tensor of the parameter's shape, which every process has, into `target`, or this process's part of it.

    Args:
        like: the parameter that `target` belongs to; where it is sharded, so is `target`, a DTensor or its local part.
    """
    if isinstance(like, DTensor):
        value = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    local(target).copy_(local(value))
