"""What a trainer keeps next to model and optimizer: accelerate's position in an accumulation, learning-rate schedulers,
running averages of weights (diffusers' EMAModel, torch's AveragedModel)."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from diagnostics.patching import replaced
from diagnostics.watching.copies import Copies

_FLAGS = ("sync_gradients", "_is_xla_gradients_synced")  # of accelerate's GradientState, which all share
_COUNTERS = ("step", "flag_tensor")  # of an Accelerator
_UPDATES = ("optimization_step", "cur_decay_value")  # of diffusers' EMAModel
_SCHEDULERS = [
    kind
    for kind in vars(lr_scheduler).values()
    if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler) and "step" in vars(kind)
]


class Bookkeeping:
    """As it is before a step; `restore` puts it back.

    A scheduler is kept once it steps: what it counts, and the rates of its optimizer. So is an average.
    """

    def __init__(self, accelerators: Collection[Any] = (), guarded: Collection[Tensor] = ()) -> None:
        """
        Args:
            accelerators: accelerate's, which count the micro-batches of an accumulation.
            guarded: tensors of averages that somebody else keeps.
        """
        self._accelerators, self._guarded = accelerators, guarded
        self._fields: list[tuple[Any, str, Any]] = []
        for accelerator in accelerators:
            self._fields += [(accelerator, name, getattr(accelerator, name, None)) for name in _COUNTERS]
        state = getattr(sys.modules.get("accelerate.state"), "GradientState", None)
        shared = getattr(state, "_shared_state", {})
        self._shared, self._flags = shared, {name: shared[name] for name in _FLAGS if name in shared}
        self._schedulers: dict[int, Any] = {}
        self._averages: dict[int, tuple[Any, bool]] = {}
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._states = Copies()
        for accelerator in accelerators:
            for wrapped in getattr(accelerator, "_schedulers", ()):
                self._keep(wrapped.scheduler)  # counts micro-batches without a step

    @contextmanager
    def before_changes(self, with_copies: Callable[[], bool]) -> Iterator[None]:
        """Keep each scheduler and average that steps inside; of an average its tensors where `with_copies` says so."""

        def keep_average(average: Any) -> None:
            self._keep_average(average, with_tensors=with_copies())

        ema = getattr(sys.modules.get("diffusers.training_utils"), "EMAModel", None)
        with ExitStack() as stack:
            for kind in _SCHEDULERS:
                stack.enter_context(replaced(kind, "step", _after(self._keep)))
            stack.enter_context(replaced(AveragedModel, "update_parameters", _after(keep_average)))
            if ema is not None:
                stack.enter_context(replaced(ema, "step", _after(keep_average)))
            yield

    def again(self) -> "Bookkeeping":
        """The same as it is now."""
        now = Bookkeeping(self._accelerators, self._guarded)
        for scheduler in self._schedulers.values():
            now._keep(scheduler)
        for average, has_tensors in self._averages.values():
            now._keep_average(average, with_tensors=has_tensors)
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

    def _keep_average(self, average: Any, *, with_tensors: bool) -> None:
        if id(average) in self._averages:
            return
        self._averages[id(average)] = average, with_tensors
        self._fields += [(average, name, getattr(average, name)) for name in _UPDATES if hasattr(average, name)]
        if with_tensors:
            known, is_module = {id(tensor) for tensor in self._guarded}, isinstance(average, AveragedModel)
            tensors = [*average.parameters(), *average.buffers()] if is_module else average.shadow_params
            self._states.add([one for one in tensors if id(one) not in known])

    def restore(self) -> None:
        """Put it back. May be called several times."""
        for holder, name, value in self._fields:
            setattr(holder, name, value)
        self._shared.update(self._flags)
        self._states.restore()
        for group, numbers in self._groups:
            group.update(numbers)


def _after(keep: Callable[[Any], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A method that first has its object kept."""

    def kept_first(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(stepper: Any, *args: Any, **kwargs: Any) -> Any:
            keep(stepper)
            return original(stepper, *args, **kwargs)

        return step

    return kept_first
