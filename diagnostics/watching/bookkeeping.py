"""Numbers that a trainer counts in a step: accelerate's position in an accumulation, learning-rate schedulers."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.optim import lr_scheduler

from diagnostics.patching import replaced
from diagnostics.watching.copies import Copies

_FLAGS = ("sync_gradients", "_is_xla_gradients_synced")  # of accelerate's GradientState, which all share
_COUNTERS = ("step", "flag_tensor")  # of an Accelerator
_SCHEDULERS = [
    kind
    for kind in vars(lr_scheduler).values()
    if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler) and "step" in vars(kind)
]


class Bookkeeping:
    """As it is before a step; `restore` puts it back.

    A scheduler is kept once it steps: what it counts, and the rates of its optimizer.
    """

    def __init__(self, accelerators: Collection[Any] = ()) -> None:
        """accelerators: accelerate's, which count the micro-batches of an accumulation."""
        self._accelerators = accelerators
        self._fields: list[tuple[Any, str, Any]] = []
        for accelerator in accelerators:
            self._fields += [(accelerator, name, getattr(accelerator, name, None)) for name in _COUNTERS]
        state = getattr(sys.modules.get("accelerate.state"), "GradientState", None)
        shared = getattr(state, "_shared_state", {})
        self._shared, self._flags = shared, {name: shared[name] for name in _FLAGS if name in shared}
        self._schedulers: dict[int, Any] = {}
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._states = Copies()
        for accelerator in accelerators:
            for wrapped in getattr(accelerator, "_schedulers", ()):
                self._keep(wrapped.scheduler)  # counts micro-batches without a step

    @contextmanager
    def before_changes(self) -> Iterator[None]:
        """Keep each scheduler that steps inside."""

        def kept_first(original: Callable[..., Any]) -> Callable[..., Any]:
            def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
                self._keep(scheduler)
                return original(scheduler, *args, **kwargs)

            return step

        with ExitStack() as stack:
            for kind in _SCHEDULERS:
                stack.enter_context(replaced(kind, "step", kept_first))
            yield

    def again(self) -> "Bookkeeping":
        """The same as it is now."""
        now = Bookkeeping(self._accelerators)
        for scheduler in self._schedulers.values():
            now._keep(scheduler)
        return now

    def _keep(self, scheduler: Any) -> None:
        if id(scheduler) in self._schedulers:
            return
        self._schedulers[id(scheduler)] = scheduler  # alive, so that its id is its own
        self._states.add(vars(scheduler))
        for group in getattr(getattr(scheduler, "optimizer", None), "param_groups", ()):
            numbers = {key: value for key, value in group.items() if key != "params"}
            self._groups.append((group, numbers))
            self._states.add([value for value in numbers.values() if isinstance(value, Tensor)])

    def restore(self) -> None:
        """Put it back. May be called several times."""
        for holder, name, value in self._fields:
            setattr(holder, name, value)
        self._shared.update(self._flags)
        self._states.restore()
        for group, numbers in self._groups:
            group.update(numbers)
