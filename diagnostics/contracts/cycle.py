"""Gradients of one optimizer between two of its steps, by a few of its parameters: present, cleared, written to."""

import weakref
from typing import Any

from torch import Tensor

from diagnostics.contracts.motion import digest
from diagnostics.contracts.scene import Scene, samples_of

_Seen = list[tuple[Any, "weakref.ref[Tensor]", int]]
"""Parameter, its gradient and the gradient's version."""


def has_gradient(optimizer: Any) -> bool:
    """Whether any parameter of it has one, zeros too."""
    return any(p.grad is not None for group in getattr(optimizer, "param_groups", ()) for p in group["params"])


def untouched(seen: _Seen) -> list[Any]:
    """Parameters whose gradient is the same tensor, of the same version."""
    return [p for p, grad, version in seen if _is_same(p.grad, grad) and p.grad._version == version]


def written(seen: _Seen) -> list[Any]:
    """Parameters whose gradient is the same tensor, of another version."""
    return [p for p, grad, version in seen if _is_same(p.grad, grad) and p.grad._version != version]


def _is_same(gradient: Tensor | None, before: "weakref.ref[Tensor]") -> bool:
    return gradient is not None and gradient is before()


def with_same_bits(parameters: list[Any], before: dict[int, Tensor]) -> list[Any]:
    """Those whose gradient has the digest that it had. Reads on the host: only where something is suspected."""
    pairs = ((p, digest(p.grad), before.get(id(p))) for p in parameters)
    return [p for p, now, then in pairs if now is not None and then is not None and int(now) == int(then)]


def are_zero(parameters: list[Any]) -> bool:
    """Whether all gradients of these are 0. Reads on the host: only where something is suspected."""
    return not any(bool(p.grad.detach().any()) for p in parameters if p.grad is not None and not p.grad.is_sparse)


class Cycle:
    """Of one optimizer."""

    is_suspected = False
    """Whether it was looked at how the loop clears."""
    num_steps = 0
    """Its own steps that were watched."""
    num_empty = 0
    """In a row without gradient."""
    clears_unseen = False
    """The loop zeroes gradients in a way that shows in no version (`p.grad.data.zero_()`)."""
    num_stale = 0
    """2 for each step on a gradient that it had stepped on, less 1 for each other one."""
    num_calls = 0
    """Of the closure that its running step was given."""
    is_summed = False
    """A call of the closure added to them."""
    was_by_scaler = False
    """Whether its last step was a scaler's."""
    num_vain = 0
    """Backward passes in a row, each before another step of it, whose gradients nobody has stepped on."""
    num_steps_of_vain = -1
    """Its own steps when the last of them was cleared."""
    num_partly_stale = 0
    """Steps in a row on some gradients that it had stepped on, next to new ones."""
    asks_no_more = False
    """Of those: the loop writes to gradients where no version shows it."""
    num_mixed = 0
    """Steps in a row on the sum of its own loss's gradients and another optimizer's."""
    num_without_update = 0
    """Steps on gradients of a scaled loss, whose scaler was asked nothing."""
    num_wasted = 0
    """Steps in a row that came after dropped backward passes."""
    has_scaler = False
    """A scaler has stepped it."""
    num_bare = 0
    """Steps of a scaler in a row on gradients of a loss that was not scaled."""
    window = 0
    """Most backward passes before one of its steps."""
    is_even = True
    """All of its steps came after as many."""
    num_before_scaler = 0
    """Its own steps when a scaler was asked to step it."""
    num_vain_clips = 0
    """In a row, each before another step of it, of gradients that it has not stepped on."""
    num_steps_of_vain_clip = -1
    """Its own steps when the last of them was cleared."""
    began_with_one = False
    """Its first step was in the watch's first, after one backward pass."""
    num_before_closure = 0
    """Backward passes of the step that runs, when it was given a closure."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.scalers: weakref.WeakSet[Any] = weakref.WeakSet()
        """That stepped it."""
        self.samples: list[Any] = []
        """A few of its parameters."""
        self.after_step: _Seen = []
        """Gradients when it had stepped."""
        self.suspects: _Seen = []
        """Gradients of an earlier step that a backward was about to add to."""
        self.of_last_call: _Seen = []
        """Gradients that the closure's last call left."""
        self.digests: dict[int, Tensor] = {}
        """Parameter -> bits of its gradient when it had stepped; since some were suspected."""
        self.stepped_on: _Seen = []
        """Gradients when it had stepped, with a closure, too."""
        self.refresh()
        self.renew()

    def refresh(self) -> None:
        """Choose the parameters that are looked at in every step."""
        self.samples = samples_of(self.optimizer())

    def gradients(self) -> _Seen:
        """Those of a few parameters as they are now. Reads nothing on the host."""
        pairs = ((p, p.grad) for p in self.samples)
        return [(p, weakref.ref(grad), grad._version) for p, grad in pairs if grad is not None]

    def renew(self) -> None:
        """It has stepped: the next backward begins another."""
        self.num_backward = 0
        """Since its last step, those that left a gradient."""
        self.num_dropped = 0
        """Of these, those whose gradients were cleared."""
        self.is_fresh = False
        """Whether gradients were computed since they were last cleared."""
        self.clipped_by: str | None = None
        """The call that clipped gradients since it stepped, or they were cleared."""
        self.was_reached = False
        """Whether a backward since its last step has left a gradient."""
        self.num_since_clear = 0
        """Backward passes of any model since the gradients were last cleared."""
        self.is_scaled = self.is_unscaled = False
        self.has_bare = False
        """A backward since its gradients were cleared was of a loss that no scaler had scaled."""
        self.after_backward: _Seen = []
        """Gradients when backward had computed them."""
        self.after_clear: _Seen = []
        self.step_of_backward: int | None = None
        self.has_own_after_foreign = False
        """A backward reached it, and no other optimizer, after another one had stepped on gradients that they share."""
        self.shared_with: list[Any] = []
        """Other optimizers that a backward since then reached, too."""
        self.is_foreign = False
        """One of these has stepped since, and this one has not."""

    def reached_with(self, others: list[Any]) -> None:
        """A backward reached it and these other optimizers."""
        self.has_own_after_foreign |= not others and self.is_foreign
        self.shared_with += [one for one in others if not any(one is known for known in self.shared_with)]

    def clear(self) -> None:
        """Its gradients were cleared."""
        self.is_fresh = self.is_scaled = self.is_foreign = self.has_own_after_foreign = self.has_bare = False
        self.num_since_clear = 0
        self.after_step, self.suspects, self.after_backward, self.shared_with = [], [], [], []
        self.of_last_call = []
        self.after_clear = self.gradients()

    def forget_cleared_by_hand(self) -> None:
        """Before a backward: what the last call of a closure left, and was written to since, or is 0."""
        alive = untouched(self.of_last_call)
        if self.of_last_call and (not alive or (not self.is_summed and are_zero(alive))):
            self.of_last_call = []
        elif len(alive) < len(self.of_last_call):
            kept = {id(p) for p in alive}
            self.of_last_call = [one for one in self.of_last_call if id(one[0]) in kept]

    def forget(self) -> None:
        """Gradients were undone."""
        self.after_step, self.suspects, self.stepped_on = [], [], []
        self.renew()


class Cycles:
    """Of all optimizers that concern the models."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._by_id: dict[int, Cycle] = {}

    @property
    def all(self) -> list[Cycle]:
        """Of optimizers that were seen, and that are alive."""
        return [cycle for cycle in self._by_id.values() if cycle.optimizer() is not None]

    def of(self, optimizer: Any) -> Cycle | None:
        """Of an optimizer that concerns the models."""
        cycle = self._by_id.get(id(optimizer))
        if cycle is not None and cycle.optimizer() is optimizer:
            return cycle
        if not self._scene.concerns(optimizer):
            return None
        cycle = self._by_id[id(optimizer)] = Cycle(optimizer)
        return cycle

    def known(self) -> list[Cycle]:
        """Of all optimizers that are watched."""
        found = (self.of(optimizer) for optimizer in self._scene.bare_optimizers())
        return [cycle for cycle in found if cycle is not None]
