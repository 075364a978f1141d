"""Batch normalisation inside of what is frozen: its running statistics stay, too."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.motion import digest
from diagnostics.contracts.scene import Scene, Step
from diagnostics.modules import unwrapped, walk

_STEPS = 2  # after the first


@dataclass
class _Norm:
    name: str
    module: _BatchNorm
    around: list[nn.Parameter]
    """All parameters of the module that holds it."""
    digests: list[Tensor]
    version: int
    has_run: bool = False
    num_moved: int = 0


class Statistics(Family):
    """Looked at in the watch's first steps: what was frozen then and stays so, and runs with gradients."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._norms: list[_Norm] | None = None
        self._handles: list[Any] = []

    def begin(self, step: Step) -> None:
        if self._norms is not None or not step.is_due:
            return
        self._norms = [norm for model in self.scene.models for norm in _frozen_in(unwrapped(model))]
        for norm in self._norms:

            def note(module: nn.Module, args: Any, norm: _Norm = norm) -> None:
                norm.has_run |= torch.is_grad_enabled()  # a teacher runs without, and may follow its student

            self._handles.append(norm.module.register_forward_pre_hook(note))

    def before_backward(self, step: Step, roots: list[Tensor]) -> None:
        """A GAN's loop freezes its judge for a while."""
        if self._norms:
            self._norms = [norm for norm in self._norms if not any(p.requires_grad for p in norm.around)]

    def end(self, step: Step) -> None:
        self._leave()
        found = []
        for norm in self._norms or ():
            version = _version(norm.module)
            norm.num_moved += version != norm.version
            if not norm.has_run or version == norm.version or not step.num_optimizer_steps:
                continue
            norm.version = version
            if norm.num_moved <= _STEPS:
                found.append(norm)
            elif _are_same(norm):  # weights that follow others move their statistics on purpose
                evidence = f"its module is frozen, and its running statistics moved in {norm.num_moved} steps"
                advice = "call eval() on what is frozen, after each model.train()"
                self.broken("frozen-parameter-moves", step, evidence, layer=norm.name, advice=advice)
        if self._norms:
            self._norms = found

    def forget(self) -> None:
        self._leave()

    def detach(self) -> None:
        self._leave()
        self._norms = []

    def _leave(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _frozen_in(root: nn.Module) -> list[_Norm]:
    """Those in training mode whose module holds frozen layers, and nothing that trains."""
    found = []
    for prefix, parent in walk(root):
        around = list(parent.parameters())
        if any(p.requires_grad for p in around):
            continue
        norms = {key: one for key, one in parent.named_children() if isinstance(one, _BatchNorm)}
        own = {id(p) for norm in norms.values() for p in norm.parameters()}
        if all(id(p) in own for p in around):
            continue
        for key, norm in norms.items():
            is_moving = norm.training and norm.track_running_stats and norm.num_batches_tracked is not None
            if is_moving and norm.affine and norm.momentum:
                digests = [one for p in around if (one := digest(p)) is not None]
                found.append(_Norm(f"{prefix}.{key}".lstrip("."), norm, around, digests, _version(norm)))
    return found


def _version(norm: _BatchNorm) -> int:
    return -1 if norm.num_batches_tracked is None else norm.num_batches_tracked._version


def _are_same(norm: _Norm) -> bool:
    """Whether all weights around it are as they were. Reads on the host: only where something is suspected."""
    now = [one for p in norm.around if (one := digest(p)) is not None]
    return len(now) == len(norm.digests) and all(int(a) == int(b) for a, b in zip(now, norm.digests, strict=True))
