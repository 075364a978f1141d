"""Modules and optimizers as a caller hands them over: one or several, wrapped or bare, walked by name."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

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


# Gradients that are not in `parameter.grad`


class Withheld:
    """A whole gradient that FSDP2 keeps to itself while it does not synchronise: `set_requires_gradient_sync(False)`.

    It lies in a parameter that is only there while the model is gathered, or, where gradients are reduced in another
    dtype, next to it.
    """

    def __init__(self, kept_by: Any, *, is_converted: bool) -> None:
        """kept_by: what FSDP2 has of a parameter. is_converted: to the dtype of the reduction."""
        self._kept_by, self._is_converted = kept_by, is_converted

    @property
    def name(self) -> str:
        """Dotted name of the parameter."""
        return str(self._kept_by._param_fqn or self._kept_by._module_info.param_name)

    @property
    def _holder(self) -> tuple[Any, str]:
        if self._is_converted:
            return self._kept_by, "unsharded_accumulated_grad"
        return getattr(self._kept_by, "_unsharded_param", None), "grad"

    @property
    def grad(self) -> Tensor | None:
        """As a parameter's: the shape of the whole parameter, None where nothing is withheld."""
        holder, attribute = self._holder
        gradient: Tensor | None = getattr(holder, attribute, None)
        return gradient

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        """`gradient`: of any shape that the parameter has as a whole."""
        holder, attribute = self._holder
        if holder is not None:
            setattr(holder, attribute, gradient)


def withheld_gradients(models: Iterable[nn.Module]) -> list[Withheld]:
    """Where FSDP2 may keep gradients of these models; none where they are not sharded."""
    found = []
    for model in models if "torch.distributed.fsdp" in sys.modules else ():
        for _, module in walk(model):
            state_of: Any = getattr(module, "_get_fsdp_state", lambda: None)
            state = state_of()
            groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
            kept = [one for group in groups for one in getattr(group, "fsdp_params", ())]
            found += [Withheld(one, is_converted=converted) for one in kept for converted in (False, True)]
    return found


# How they are called


def in_backward() -> bool:
    """Whether autograd runs on this thread; a forward call is then activation checkpointing's repetition."""
    return torch._C._current_graph_task_id() != -1


def eagerly() -> AbstractContextManager[Any]:
    """Compiled modules run eagerly inside: torch.compile does not notice hooks that come after compilation."""
    # Only where something was compiled: importing the compiler takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


_EAGER = ContextVar("eager_modules", default=False)


@contextmanager
def eager_modules() -> Iterator[None]:
    """As `eagerly`, but an optimizer's `step` inside runs as it was compiled: it calls no module, and its compiled
    kernels round in another way than the eager ones. One that is given a closure, which calls modules, runs eagerly."""
    if "torch._dynamo" not in sys.modules or _EAGER.get():  # two would put back one another's stance
        yield
        return
    lifted: list[Any] = []

    def before(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not any(map(callable, (*args[1:], *kwargs.values()))):
            lifted.append(torch.compiler.set_stance("default"))

    def after(*_: object) -> None:
        if lifted:
            lifted.pop().__exit__(None, None, None)

    with ExitStack() as stack:
        stack.callback(_EAGER.reset, _EAGER.set(True))
        stack.enter_context(eagerly())
        stack.callback(register_optimizer_step_pre_hook(before).remove)
        stack.callback(register_optimizer_step_post_hook(after).remove)
        yield
