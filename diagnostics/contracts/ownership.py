"""Optimizers and parameters match: each that trains is held once, and gets a gradient."""

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.hidden import frozen_by_attribute, hidden_in, results_in
from diagnostics.contracts.motion import digest
from diagnostics.contracts.scene import Scene, Step, held_by
from diagnostics.modules import unwrapped, walk
from diagnostics.tensors import strided

_UNHELD = 2  # steps in which it gets a gradient
_WITHOUT_GRADIENT = 3  # steps of its optimizer
_WITHOUT_GRADIENT_ROUTED = 20  # where the parameters that have a gradient change from step to step
_MOST_CHANGES = 8  # a GAN's loop may freeze one model in every second step
_FEW = 0.02  # of the elements that an optimizer trains


class Ownership(Family):
    """Looked at in the first steps of the watch and where a step is due."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._num_steps: dict[int, int] = {}  # of optimizers
        self._without: dict[int, int] = {}  # parameter -> steps of its optimizer
        self._unheld: dict[int, int] = {}  # parameter -> steps in which it got a gradient
        self._digests: dict[int, Tensor] = {}  # of those that are suspected
        self._stepped_on: dict[int, tuple[Any, int, Any]] = {}  # parameter -> gradient, version, optimizer
        self._num_looks = 0
        self._has_run: set[int] = set()  # modules
        self._ran_with_gradients: set[int] = set()  # parameters
        self._results: dict[str, Any] = {}  # attributes that were computed from no parameter of the models
        self._handles: list[Any] = []
        self._looks = False
        self._all: list[nn.Parameter] = []
        self._trains: list[bool] = []  # of these
        self._num_changes = 0
        self._reached: set[int] = set()  # parameters that had a gradient when an optimizer stepped
        self._had_gradient: set[int] = set()  # parameters that ever had one after a backward
        self._patterns: dict[int, tuple[set[int], int]] = {}  # optimizer -> which have a gradient, steps in a row
        self._is_routed: set[int] = set()  # optimizers
        self._hidden: list[tuple[str, Tensor]] = []  # that the model does not know of

    # A step

    def begin(self, step: Step) -> None:
        self._stepped_on, self._reached = {}, set()
        self._note_changes(step)
        self._looks = step.is_due or self._num_looks <= _WITHOUT_GRADIENT
        if step.is_due and not self._has_run:  # compiled modules run eagerly in such a step
            self._note_runs()
            self._look_for_hidden(step)
        elif self._results:
            self._confirm_results(step)

    def _look_for_hidden(self, step: Step) -> None:
        """What stands in a model's modules and is none of its parameters, though it was meant to be."""
        own = self.scene.parameters()
        for model in self.scene.models:
            root = unwrapped(model)
            self._hidden += hidden_in(root)
            self._results |= {name: weakref.ref(value) for name, value in results_in(root, own)}
            for name, attribute in frozen_by_attribute(root):
                evidence = f"`.{attribute} = False` sets an attribute that torch does not know, and it trains on"
                advice = "call requires_grad_(False)"
                self.broken("frozen-parameter-moves", step, evidence, layer=name, advice=advice)

    def _confirm_results(self, step: Step) -> None:
        """An activation that a module keeps is another one in the next step."""
        before, self._results = self._results, {}
        own = self.scene.parameters()
        now = {name: value for model in self.scene.models for name, value in results_in(unwrapped(model), own)}
        for name, reference in before.items():
            if name in now and reference() is now[name]:
                evidence = "it was computed from an nn.Parameter (.float(), .to(...), * 0.1), so it is none: the module"
                advice = "convert the tensor first, and make the nn.Parameter of the result"
                evidence += " does not register it, and no optimizer gets it"
                self.broken("parameter-without-optimizer", step, evidence, parameter=name, advice=advice)

    def _note_changes(self, step: Step) -> None:
        """What trains may change on the way: it is looked at anew then, unless it does so all the time."""
        has_changed = [p.requires_grad for p in self._all] != self._trains
        if has_changed and self._num_changes < _MOST_CHANGES:
            self._num_changes += 1
            self._num_looks = 0
        if has_changed or step.is_due:
            self._all = list(self.scene.parameters().values())
            self._trains = [p.requires_grad for p in self._all]

    def _note_runs(self) -> None:
        """Which modules run: one that does not cannot get a gradient."""
        for model in self.scene.models:
            for _, module in walk(model):
                if module._parameters and not isinstance(module, torch.jit.ScriptModule):
                    self._handles.append(module.register_forward_pre_hook(self._note_run))

    def _note_run(self, module: nn.Module, args: Any) -> None:
        self._has_run.add(id(module))
        if torch.is_grad_enabled():
            self._ran_with_gradients |= {id(p) for p in module._parameters.values()}

    def leave(self) -> None:
        """Take hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def detach(self) -> None:
        self.leave()
        self._all, self._trains = [], []

    def after_backward(self, step: Step) -> None:
        """A gradient that was there and that the loop sets to None is a loop's own affair."""
        if self._looks:
            self._had_gradient |= {key for key, p in self.scene.parameters().items() if p.grad is not None}

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        if self._looks and not has_closure:
            self._ask(step, optimizer)

    def after_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        """A closure computes the gradients inside the optimizer's step, as Lightning's does."""
        if self._looks and has_closure:
            self._ask(step, optimizer)

    def _ask(self, step: Step, optimizer: Any) -> None:
        held = held_by(optimizer)
        num = self._num_steps[id(optimizer)] = self._num_steps.get(id(optimizer), 0) + 1
        if num == 1:
            self._check_twice(step, optimizer, held)
        own = self.scene.parameters()
        hidden = {id(p): p for _, p in self._hidden}
        self._reached |= {key for key, p in (own | hidden).items() if p.grad is not None}
        if not any(id(p) in own for p in held) and not any(optimizer is o for o in self.scene.bare_optimizers()):
            return
        self._check_same_gradient(step, optimizer, held)
        if num >= 2:
            self._check_strangers(step, optimizer, held, own)
        self._check_gradients(step, optimizer, held, own)

    def end(self, step: Step) -> None:
        self.leave()
        if self._looks and step.num_optimizer_steps:
            self._num_looks += 1
            self._check_unheld(step)
        self._stepped_on = {}

    def forget(self) -> None:
        self.leave()
        self._stepped_on = {}

    # Questions

    def _check_twice(self, step: Step, optimizer: Any, held: list[nn.Parameter]) -> None:
        ids = [id(p) for p in held]
        if len(set(ids)) < len(ids):
            twice = [p for number, p in enumerate(held) if ids.index(id(p)) < number]
            name = self.scene.name_of_optimizer(optimizer)
            self.broken_in("parameter-in-two-groups", step, twice, f"{name} holds it twice")

    def _check_same_gradient(self, step: Step, optimizer: Any, held: list[nn.Parameter]) -> None:
        twice: list[nn.Parameter] = []
        other: Any = None
        for parameter in held:
            grad = parameter.grad
            if grad is None:
                continue
            before = self._stepped_on.get(id(parameter))
            if before is not None and before[2] is not optimizer and before[0] is grad and before[1] == grad._version:
                twice, other = [*twice, parameter], before[2]
            self._stepped_on[id(parameter)] = grad, grad._version, optimizer
        if twice:
            mine, others = self.scene.name_of_optimizer(optimizer), self.scene.name_of_optimizer(other)
            evidence = f"{mine} steps on the gradient that {others} has stepped on"
            self.broken_in("parameter-in-two-groups", step, twice, evidence)

    def _check_strangers(
        self, step: Step, optimizer: Any, held: list[nn.Parameter], own: dict[int, nn.Parameter]
    ) -> None:
        strangers = [p for p in held if id(p) not in own and p.grad is None and p.requires_grad]
        if not strangers or any(id(p) not in own and p.grad is not None for p in held):
            return
        known = {id(p) for one in [*self.scene.bare_optimizers(), optimizer] for p in held_by(one)}
        seen = self._reached | self._had_gradient
        left = [tuple(p.shape) for key, p in own.items() if key not in known and p.requires_grad and key in seen]
        copies = [p for p in strangers if tuple(p.shape) in left]
        none_of_ours = len(strangers) == len(held)
        if copies or none_of_ours:
            name, first = self.scene.name_of_optimizer(optimizer), (copies or strangers)[0]
            evidence = f"{name} holds {len(strangers)} parameters that are not the model's and get no gradient"
            evidence += f", the first of shape {tuple(first.shape)}"
            unheld = [p for key, p in own.items() if key not in known and p.requires_grad]
            meant = [p for p in unheld if p.shape == first.shape] or unheld
            if meant:
                self.broken_in("optimizer-holds-stranger", step, meant[:1], f"{evidence}; it does not hold this one")
            else:
                self.broken("optimizer-holds-stranger", step, evidence, subject=name)

    def _check_gradients(
        self, step: Step, optimizer: Any, held: list[nn.Parameter], own: dict[int, nn.Parameter]
    ) -> None:
        trained = [p for p in held if p.requires_grad and id(p) in own]
        pattern = {id(p) for p in trained if p.grad is not None}
        before, num_same = self._patterns.get(id(optimizer), (pattern, 0))
        self._patterns[id(optimizer)] = pattern, num_same + 1 if pattern == before else 1
        if self._patterns[id(optimizer)][1] < min(_WITHOUT_GRADIENT, self._num_steps[id(optimizer)]):
            self._is_routed.add(id(optimizer))
        for parameter in trained:
            there = parameter.grad is not None
            self._without[id(parameter)] = 0 if there else self._without.get(id(parameter), 0) + 1
        if all(p.grad is None for p in trained):
            return  # another contract
        ran = self._parameters_that_ran()
        most = _WITHOUT_GRADIENT_ROUTED if id(optimizer) in self._is_routed else _WITHOUT_GRADIENT
        without = [p for p in trained if self._without[id(p)] >= most and id(p) not in self._had_gradient]
        name = self.scene.name_of_optimizer(optimizer)
        missing, idle = [p for p in without if id(p) in ran], self._idle(without, ran)
        if idle:
            evidence = f"its layer has not run in {most} steps of {name} in a row: no input of it, or no call?"
            self.broken_in("parameter-without-gradient", step, idle, evidence, severity="warning")
        if not missing:
            return
        share = sum(p.numel() for p in missing) / max(1, sum(p.numel() for p in trained))
        evidence = f"no gradient in {most} steps of {name} in a row, though its layer runs"
        evidence += f"; {100 * share:.1f} % of what it trains"
        may_come = not any(id(p) in self._ran_with_gradients for p in missing)  # frozen for its first updates
        severity = "warning" if share < _FEW or may_come else "alarm"
        self.broken_in("parameter-without-gradient", step, missing, evidence, severity=severity)

    def _idle(self, without: list[nn.Parameter], ran: set[int]) -> list[nn.Parameter]:
        """Of layers that did not run, and are none of several in a list of which others did: experts take turns."""
        idle = {id(p) for p in without if id(p) not in ran}
        for model in self.scene.models if idle else ():
            for _, module in walk(model):
                if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                    parts = [{id(p) for p in part.parameters()} for part in module.children()]
                    if any(part & ran for part in parts):
                        idle -= set().union(*parts)
        return [p for p in without if id(p) in idle]

    def _parameters_that_ran(self) -> set[int]:
        modules = [module for model in self.scene.models for _, module in walk(model) if id(module) in self._has_run]
        return {id(p) for module in modules for p in module._parameters.values() if p is not None}

    def _check_unheld(self, step: Step) -> None:
        held = {id(p) for optimizer in self.scene.bare_optimizers() for p in held_by(optimizer)}
        hidden = {id(p): p for _, p in self._hidden}
        unheld = [
            p
            for key, p in (self.scene.parameters() | hidden).items()
            if key not in held and p.requires_grad and key in self._reached and strided(p) is not None
        ]
        if not held or not unheld:
            return
        if not any(self._unheld.get(id(p)) for p in unheld):
            elsewhere = {id(p) for one in _all_optimizers() for p in held_by(one)}
            unheld = [p for p in unheld if id(p) not in elsewhere]
        found = []
        for parameter in unheld:
            now = digest(parameter)
            before = self._digests.get(id(parameter))
            if now is None or (before is not None and bool(now != before)):  # the loop moves it by hand
                self._unheld[id(parameter)] = -(2**30)
                continue
            self._digests[id(parameter)] = now
            self._unheld[id(parameter)] = self._unheld.get(id(parameter), 0) + 1
            if self._unheld[id(parameter)] >= _UNHELD:
                found.append(parameter)
        if found:
            evidence = "it trains and gets a gradient, and no optimizer holds it"
            own = [p for p in found if id(p) not in hidden]
            if own:
                self.broken_in("parameter-without-optimizer", step, own, evidence)
            name = next((name for name, p in self._hidden if any(p is one for one in found)), None)
            if name is not None:
                evidence += ": it stands in a list, a tuple or a dict, which registers nothing (nn.ModuleList does)"
                self.broken("parameter-without-optimizer", step, evidence, parameter=name)


def _all_optimizers() -> list[Any]:
    """torch's optimizers of this process: another one may be meant to step later."""
    kind = torch.optim.Optimizer
    return [one for one in gc.get_objects() if issubclass(type(one), kind) and hasattr(one, "param_groups")]
