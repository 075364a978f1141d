"""Modules and optimizers as a caller hands them over: one or several, wrapped or bare, walked by name."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# What a caller hands over


def models_in(argument: Any) -> list[nn.Module]:
    """The modules of an argument that takes one, several or None.

    Raises:
        TypeError: it is neither a module nor an iterable of them.
    """
    found = [argument] if isinstance(argument, nn.Module) else _several(argument)
    for one in found:
        if not isinstance(one, nn.Module):
            raise TypeError(f"model: a torch.nn.Module or several, not {_kind(one)}")
    return found


def optimizers_in(argument: Any) -> list[Any]:
    """The optimizers of an argument that takes one, several or None; of any class with a `step` method.

    Raises:
        TypeError: it is neither such an object nor an iterable of them.
    """
    found = [argument] if _is_optimizer(argument) else _several(argument)
    for one in found:
        if not _is_optimizer(one):
            raise TypeError(f"optimizer: an object with a `step` method or several, not {_kind(one)}")
    return found


def _is_optimizer(argument: Any) -> bool:
    return not isinstance(argument, type) and callable(getattr(argument, "step", None))


def _several(argument: Any) -> list[Any]:
    if argument is None:
        return []
    return list(argument) if isinstance(argument, Iterable) and not isinstance(argument, str) else [argument]


def _kind(argument: Any) -> str:
    return f"the class {argument.__name__}" if isinstance(argument, type) else f"{type(argument).__name__}"


# Modules by name


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's model inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(dotted name, module) pairs as `named_modules` gives them, ten times as fast: without nested generators."""
    seen: set[int] = set()
    ahead = [("", model)]
    while ahead:
        name, module = ahead.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        prefix = f"{name}." if name else ""
        children = reversed(module._modules.items())
        ahead.extend((prefix + key, child) for key, child in children if child is not None)


def leaf_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Dotted name to module, for modules without children. A model that is itself a leaf is named `model`.

    Names are those of the bare model: wrappers (DDP, torch.compile) leave no trace in them. A module that is used in
    several places appears once, under its first name.
    """
    leaves = ((name, module) for name, module in walk(unwrapped(model)) if not any(module._modules.values()))
    return {name.replace("_orig_mod.", "") or "model": module for name, module in leaves}


# How they are called


def in_backward() -> bool:
    """Whether autograd runs on this thread; a forward call is then activation checkpointing's repetition."""
    return torch._C._current_graph_task_id() != -1


def eagerly() -> AbstractContextManager[Any]:
    """Compiled modules run eagerly inside: torch.compile does not notice hooks that come after compilation."""
    # Only where something was compiled: importing the compiler takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
