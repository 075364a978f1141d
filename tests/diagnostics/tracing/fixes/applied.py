"""A case's code with the advised change made in it, run for three steps."""

import ast
import inspect
import math
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics import Verdict, explain
from diagnostics.modules import models_in
from diagnostics.tensors import tensors_in
from shadowlab.bench.corpus import Fault, Scene


@dataclass(frozen=True)
class Fix:
    """What somebody who reads a verdict's `fix` writes."""

    says: str
    """Part of the `fix` that asks for this change; several, with || between them, where it depends on the version."""
    edits: tuple[tuple[str, str], ...] = ()
    """(code as it is, code in its place), each once in the case's function."""
    inside: str | None = None
    """Function of the case's module that is edited, where the case only calls it."""
    build: str | None = None
    """Expression that builds the edited scene, where the case is no plain function."""
    then: Callable[[Scene], Any] | None = None
    """After the first step: another batch, where the first has nothing to learn from."""
    drawn: bool = False
    """Each step has another loss, or weights are written to after the update, so that it need not fall."""
    steps: int = 3
    """More where a gradient scaler finds its scale first: gradients of a step that it skips may be infinite."""


def fix(says: str, *edits: str, **options: Any) -> Fix:
    """`fix("softmax", "old", "new", "old", "new")`."""
    return Fix(says, tuple(zip(edits[::2], edits[1::2], strict=True)), **options)


def verdict_of(fault: Fault) -> Verdict | None:
    """Of the case as it is."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = fault.build().start()
        if scene.raises is not None and not issubclass(scene.raises, Exception):
            with suppress(scene.raises):
                return explain(scene.step, model=scene.model, optimizer=scene.optimizer, batch=scene.batch)
            return None
        return explain(scene.step, model=scene.model, optimizer=scene.optimizer, batch=scene.batch)


def edited(fault: Fault, fix: Fix) -> Scene:
    """The scene that the case's module builds with the change made."""
    name = fix.inside or fault.build.__name__
    module = sys.modules[fault.build.__module__]
    source = inspect.getsource(vars(module)[name])
    for old, new in fix.edits:
        assert source.count(old) == 1, f"{fault.name}: {old!r} is there {source.count(old)} times"
        source = source.replace(old, new)
    ast.parse(source)
    namespace = dict(vars(module))
    exec(compile(source, f"<{fault.name}, fixed>", "exec"), namespace)
    if fix.build is not None:
        return eval(fix.build, namespace)  # type: ignore[no-any-return]
    if fix.inside is not None:
        helper = namespace[fix.inside]
        outer = inspect.getsource(fault.build)
        exec(compile(outer, f"<{fault.name}>", "exec"), namespace)
        namespace[fix.inside] = helper
    scene: Scene = namespace[fault.build.__name__]()
    return scene


def plain(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor of any layout, dense, real and without its graph."""
    tensor = tensor.detach()
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).clone()


class Training:
    """Three steps of a scene. A scene that never updates is updated here, a little against its gradient."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.parameters = [p for model in models_in(scene.model) for p in model.parameters() if p.requires_grad]
        self.losses: list[float] = []
        self.slope = 0.0
        """Sum over parameters of movement times gradient: below 0 the loss falls to first order."""
        self.moved = False

    def step(self, run: Callable[[Callable[[], Any]], Any]) -> None:
        """One step, by `run`."""
        before = [plain(p) for p in self.parameters]
        returned: list[Any] = []
        run(lambda: returned.append(self.scene.step()) or returned[0])
        self.losses.extend(float(x.detach().float().sum()) for x in tensors_in(returned))
        gradients = [None if p.grad is None else plain(p.grad) for p in self.parameters]
        if self.scene.between is not None:
            self.scene.between()
        if all(torch.equal(plain(p), old) for p, old in zip(self.parameters, before, strict=True)):
            self._descend()
        for p, old, gradient in zip(self.parameters, before, gradients, strict=True):
            self.moved |= not torch.equal(plain(p), old)
            if gradient is not None and bool(torch.isfinite(gradient).all()):
                self.slope += float(((plain(p) - old).double() * gradient.double()).sum())

    def _descend(self) -> None:
        finite = [bool(torch.isfinite(plain(p.grad)).all()) for p in self.parameters if p.grad is not None]
        if self.scene.optimizer is not None and not all(finite):
            return  # a scaler skipped this step
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients))
        with torch.no_grad():
            for p in self.parameters:
                if p.grad is not None and norm > 0:
                    length = 1e-2 * max(1.0, float(p.float().norm()))
                    p.copy_(p.float() - length * (p.grad.double() / norm).to(torch.float32))
                p.grad = None

    def bad(self, gradients: bool) -> list[str]:
        """What is not finite, gradients included or not."""
        tensors: dict[str, Tensor] = {}
        for i, model in enumerate(models_in(self.scene.model)):
            tensors |= {f"{i}.{name}": plain(value) for name, value in model.state_dict().items()}
            if gradients:
                tensors |= {f"{i}.{n}.grad": plain(p.grad) for n, p in model.named_parameters() if p.grad is not None}
        found = [name for name, value in tensors.items() if bool(torch.isnan(value.float()).any())]
        found += [name for name, p in tensors.items() if name.endswith("grad") and not bool(torch.isfinite(p).all())]
        return found + [f"loss {loss}" for loss in self.losses if not math.isfinite(loss)]
