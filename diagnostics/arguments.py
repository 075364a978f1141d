"""Arguments that take none, one or several models or optimizers."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def models_in(argument: Any) -> list[nn.Module]:
    """Raises TypeError for anything but a module, an iterable of them, or None."""
    found = [argument] if isinstance(argument, nn.Module) else _several(argument)
    for one in found:
        if not isinstance(one, nn.Module):
            raise TypeError(f"model: a torch.nn.Module or several, not {_kind(one)}")
    return found


def optimizers_in(argument: Any) -> list[Any]:
    """Raises TypeError for anything but an object with a `step` method, an iterable of them, or None."""
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
