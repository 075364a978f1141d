"""Training and evaluation mode: in the steps, and between them, where validation runs."""

import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from diagnostics.contracts.dropouts import Dropouts
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.model_calls import CALLS, Heard
from diagnostics.contracts.scene import Scene, Step, held_by
from diagnostics.modules import unwrapped, walk

_NEVER_TRAINED = 2  # steps
_FOLLOWED = 2  # calls


_INSIDE: "weakref.WeakSet[Modes]" = weakref.WeakSet()
"""Of the watches whose step runs."""


class Modes(Family):
    """Dropout and batch normalisation behave as the loop means them to."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._roots = [unwrapped(model) for model in scene.models]
        self._has_trained = [False] * len(self._roots)  # in training mode
        self._num_untrained = [0] * len(self._roots)
        self._num_left = 0  # steps in a row with a part in evaluation mode
        self._parts = [part for root in self._roots for part in running_parts(root)]
        self._outside: list[tuple[str, str]] = []  # name of a module and what it does in training mode
        self._num_followed = 0  # calls in evaluation mode
        self._is_listening = False
        self._heard = _weakly(self)

    def begin(self, step: Step) -> None:
        _INSIDE.add(self)
        if not self._is_listening:
            self._is_listening = True
            for part in self._parts:
                CALLS.listen(part, self._heard)
        if self._outside:
            (name, kind), num = self._outside[0], len(self._outside)
            how = "" if "evaluation" in kind else " in training mode"
            evidence = f"the model ran without gradients{how}, {num} times since the last step: {kind}"
            self.broken("training-mode-in-evaluation", step, evidence, layer=name)
            self._outside = []

    def called(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        """A model runs."""
        if _INSIDE or torch.is_grad_enabled():  # another watch's step may run
            return None
        if not root.training:
            return self._without_dropout(root)
        found = _active(root)
        if found is not None:
            self._outside.append(found)
        return None

    def _without_dropout(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        """The first calls in evaluation mode are followed; a module that was put into training mode is meant to be."""
        is_meant = any(module.training for module in root.modules() if isinstance(module, _DropoutNd))
        if self._num_followed >= _FOLLOWED or is_meant:
            return None
        self._num_followed += 1
        return Dropouts(root, lambda place: self._outside.append((place, "dropout is active in evaluation mode")))

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        asks_parts = step.is_due or step.index <= _NEVER_TRAINED
        if not asks_parts and all(root.training for root in self._roots) and all(self._has_trained):
            return
        held = {id(p) for p in held_by(optimizer)}
        for number, root in enumerate(self._roots):
            if root.training:
                self._has_trained[number] = True
                self._num_untrained[number] = 0
                if asks_parts:
                    self._check_parts(step, root, held)
                continue
            if not any(id(p) in held for p in root.parameters()):
                continue
            kinds = _kinds(root)
            if self._has_trained[number] and kinds:
                evidence = f"{type(root).__name__} is stepped in evaluation mode, and was in training mode before"
                self.broken("evaluation-mode-in-training", step, f"{evidence}: {kinds[0][1]}", layer=kinds[0][0])
                continue
            dropout = next(((name, kind) for name, kind in kinds if kind.startswith("Dropout")), None)
            self._num_untrained[number] += 1
            if dropout is not None and self._num_untrained[number] == _NEVER_TRAINED:
                evidence = f"{type(root).__name__} is in evaluation mode in its first steps: {dropout[1]} does nothing"
                self.broken("evaluation-mode-in-training", step, evidence, layer=dropout[0], severity="warning")

    def _check_parts(self, step: Step, root: nn.Module, held: set[int]) -> None:
        """A part that came in evaluation mode, as `from_pretrained` hands it over, inside a model that trains."""
        left = _left_in_evaluation(root, held)
        self._num_left = self._num_left + 1 if left else 0
        if left is not None and self._num_left >= _NEVER_TRAINED:
            name, kind = left
            evidence = f"it trains, and is in evaluation mode inside a model in training mode: {kind} does nothing"
            self.broken("evaluation-mode-in-training", step, evidence, layer=name, severity="warning")

    def end(self, step: Step) -> None:
        _INSIDE.discard(self)

    def forget(self) -> None:
        _INSIDE.discard(self)
        self._outside = []

    def detach(self) -> None:
        _INSIDE.discard(self)
        self._is_listening = False
        self._outside = []
        for part in self._parts:
            CALLS.forget(part, self._heard)


def _kinds(root: nn.Module) -> list[tuple[str, str]]:
    """Name and kind of each module that behaves differently in the two modes, whatever its mode."""
    found = []
    for name, module in walk(root):
        if isinstance(module, _DropoutNd) and module.p > 0:
            found.append((name or "model", f"Dropout({module.p:g})"))
        elif isinstance(module, _BatchNorm) and module.track_running_stats:
            found.append((name or "model", type(module).__name__))
    return found


def _active(root: nn.Module) -> tuple[str, str] | None:
    """Name and kind of the first module that drops out, or moves its running statistics, in the mode that it has."""
    for name, module in walk(root):
        if isinstance(module, _DropoutNd) and module.p > 0 and module.training:
            return name or "model", f"Dropout({module.p:g}) is active"
        is_moving = isinstance(module, _BatchNorm) and module.track_running_stats and module.training
        if is_moving and module.momentum is not None:  # None: `update_bn` computes averages anew, on purpose
            return name or "model", f"{type(module).__name__} uses this batch and moves its running statistics"
    return None


def running_parts(root: nn.Module) -> list[nn.Module]:
    """The modules that are called for it: itself, or, where it has no forward of its own, what it holds."""
    forward = type(root).forward
    is_bare = "unimplemented" in getattr(forward, "__qualname__", "") or "lightning" in str(forward.__module__)
    if not is_bare:
        return [root]
    return [part for child in root.children() for part in running_parts(child)]


def _left_in_evaluation(root: nn.Module, held: set[int]) -> tuple[str, str] | None:
    """The outermost part in evaluation mode that has dropout and parameters which an optimizer trains."""
    for name, module in walk(root):
        if module.training or not any(id(p) in held and p.requires_grad for p in module.parameters()):
            continue
        kind = next((kind for _, kind in _kinds(module) if kind.startswith("Dropout")), None)
        if kind is not None:
            return name or type(module).__name__, kind
    return None


def _weakly(modes: Modes) -> Heard:
    """For a watch that nobody has any more is silent."""
    reference = weakref.ref(modes)

    def heard(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[Any] | None:
        own = reference()
        return None if own is None else own.called(root)

    return heard
