"""What the families of contracts have in common: which moments of a step they are asked at, how they report."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from diagnostics.contracts.calls import Clip
from diagnostics.contracts.scene import Scene, Step
from diagnostics.contracts.table import CONTRACTS
from diagnostics.health import Finding

LOG = logging.getLogger("diagnostics.watch")  # a loop of somebody else has no console of ours


class Reports:
    """Findings, each thing once: a contract at a place; once more where a warning has become an alarm."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self._known: set[tuple[str, str, str]] = set()
        self._num_new = 0

    def add(self, finding: Finding) -> None:
        key = finding.rule, finding.where
        if {(*key, finding.severity), (*key, "alarm")} & self._known:
            return
        self._known.add((*key, finding.severity))
        self.found.append(finding)

    def take_new(self) -> list[Finding]:
        """Those since the last call."""
        new = self.found[self._num_new :]
        self._num_new = len(self.found)
        return new


class Family:
    """Contracts of one topic. Every method is optional."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        self.scene, self._reports = scene, reports

    def __deepcopy__(self, memo: dict[int, Any]) -> "Family":
        """The same object: a model that is copied while a step runs takes hooks along."""
        return self

    def broken(self, name: str, step: Step | None, evidence: str, **details: Any) -> None:
        """Report it; details as of `Contract.broken`."""
        self._reports.add(CONTRACTS[name].broken(None if step is None else step.index, evidence, **details))

    def broken_in(self, name: str, step: Step, parameters: list[Any], evidence: str, **details: Any) -> None:
        """Report it once for some parameters, at the first of them; details as of `Contract.broken`."""
        names = self.scene.names()
        listed = [names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in parameters]
        others = f" ({len(listed)} parameters, to {listed[-1]})" if len(listed) > 1 else ""
        self.broken(name, step, evidence + others, parameter=listed[0], **details)

    def begin(self, step: Step) -> None:
        """A step begins."""

    def around(self, step: Step) -> AbstractContextManager[Any]:
        """The step runs inside."""
        return nullcontext()

    def before_backward(self, step: Step, roots: list[Tensor]) -> None:
        """These tensors of any shape are about to be differentiated."""

    def after_backward(self, step: Step) -> None:
        """Gradients are there. `torch.autograd.grad` comes here, too."""

    def after_clear(self, step: Step, owner: Any) -> None:
        """`zero_grad` of an optimizer or a module was called."""

    def after_scale(self, step: Step, scaled: list[Tensor]) -> None:
        """A gradient scaler has scaled losses of any shape."""

    def on_scaler(self, step: Step, scaler: Any, call: str, optimizer: Any) -> None:
        """A gradient scaler is about to `unscale_`, `step` or `update`, or has `stepped`; optimizer: None where it has
        none."""

    def on_clip(self, step: Step, clip: Clip) -> None:
        """Gradients are about to be clipped."""

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        """An optimizer is about to move parameters."""

    def before_closure(self, step: Step, optimizer: Any) -> None:
        """The optimizer, which steps, is about to call its closure."""

    def after_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        """It has."""

    def end(self, step: Step) -> None:
        """A step has ended well."""

    def forget(self) -> None:
        """The step was undone: what is known of gradients is void."""

    def detach(self) -> None:
        """Leave no trace in torch or in the models."""


Make = Callable[[Scene, Reports], Family]
