"""Which models a script trains, found from the parameters that its optimizers hold."""

import gc
from collections.abc import Iterable

import torch
from torch import nn


def held_by(optimizers: Iterable[torch.optim.Optimizer]) -> set[int]:
    """Ids of the parameters in their groups."""
    return {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}


def owns_any(module: nn.Module, held: set[int]) -> bool:
    """Whether a module or one below it has one of these parameters."""
    return any(id(p) in held for p in module.parameters())


def models_of(optimizers: Iterable[torch.optim.Optimizer], called: nn.Module | None) -> list[nn.Module]:
    """Modules that own what the optimizers hold, none inside another.

    A module that only wraps a model for a while, such as an average of its weights, gives way to `called`, the first
    one that the script called itself, where that owns the same parameters. Looks at every object there is.
    """
    held = held_by(optimizers)
    # `type`, not isinstance: that would ask a lazily loaded module for its class, and load it.
    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module) and "_modules" in vars(one)]
    inner = {id(child) for one in modules for child in one._modules.values() if child is not None}
    owning = [one for one in modules if id(one) not in inner and owns_any(one, held)]
    return [_narrowed(one, called, held) for one in owning]


def _narrowed(root: nn.Module, called: nn.Module | None, held: set[int]) -> nn.Module:
    if called is None or all(called is not one for one in root.modules()):
        return root
    owned = {id(p) for p in root.parameters()} & held
    return called if owned <= {id(p) for p in called.parameters()} else root
