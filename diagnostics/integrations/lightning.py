"""A `Watch` inside Lightning's `Trainer`, for automatic and manual optimization.

    from diagnostics.integrations.lightning import WatchCallback

    trainer = Trainer(callbacks=[WatchCallback(incidents="incidents")])

A watched step is what the trainer does with one batch: `training_step`, backward, clipping and, where an accumulation
ends, `optimizer.step()`, whatever the precision plugin. The callback stands around the trainer's own call of it;
nothing is moved.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor

from diagnostics.errors import NonFiniteError
from diagnostics.integrations.options import checked_options
from diagnostics.patching import replaced
from diagnostics.watching import Watch

try:
    if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
        from pytorch_lightning import Callback, LightningModule, Trainer
    else:
        from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(
            "diagnostics.integrations.lightning needs Lightning, which is not installed: pip install lightning"
        ) from error


class WatchCallback(Callback):  # type: ignore[misc]
    """Stops `Trainer.fit` with a `NonFiniteError` before anything bad is kept.

    Steps are numbered as batches are, over all epochs and from 0; with accumulation that is not `global_step`.

    What the step has changed in the trainer is put back before it is repeated and when the error is raised: progress
    counters, what `self.log` collected, states of torchmetrics, `toggle_optimizer`. So a checkpoint that is saved in
    `on_exception` is that of the step before. Attributes of your own that `training_step` changes are not.
    """

    watch: Watch | None
    """The watch of the fit that runs or has run; None before the first."""

    def __init__(self, **options: Any) -> None:
        """Ready for `Trainer(callbacks=[...])`; may be used for several fits, each gets a watch of its own.

        Args:
            options: those of `Watch`, without model and optimizer.

        Raises:
            TypeError: there is no such option.
        """
        super().__init__()
        self.watch = None
        self._options = checked_options(options)
        self._stack = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Models are wrapped, optimizers made and a checkpoint is loaded by now."""
        self._stack.close()
        parameters = {id(parameter) for parameter in pl_module.parameters()}
        own = [optimizer for optimizer in trainer.optimizers if _holds(optimizer, parameters)]
        self.watch = Watch(pl_module, own or None, **self._options)
        for name, is_max, by in _choices(trainer):
            self.watch._watched.contracts.add_choice(name, higher_is_better=is_max, by=by)
        metrics = [module for module in pl_module.modules() if hasattr(module, "_defaults")]
        watched, loop = _Watched(self.watch, trainer, metrics), trainer.fit_loop.epoch_loop
        for part in (loop.automatic_optimization, loop.manual_optimization):
            self._stack.enter_context(replaced(part, "run", watched.around))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes everything off again."""
        self._stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self._stack.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As at the end."""
        self._stack.close()


class _Watched:
    """The trainer's call that treats one batch, under watch."""

    def __init__(self, watch: Watch, trainer: Any, metrics: list[Any]) -> None:
        self._watch, self._trainer, self._metrics = watch, trainer, metrics

    def around(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """In place of the loop's `run`, which ends with the arguments of `training_step` by name."""

        def watched(*args: Any) -> Any:
            *before, named = args
            return self._step(lambda arguments: run(*before, arguments), named)

        return watched

    def _step(self, run: Callable[[Mapping[str, Any]], dict[str, Any]], named: Mapping[str, Any]) -> dict[str, Any]:
        moment = Moment(self._trainer, self._metrics)
        source = None if "batch" in named else _Repeatable(next(iter(named.values())))
        num_left_out = self._watch.num_left_out
        output: dict[str, Any] = {}

        def step() -> Tensor | None:
            moment.restore()
            arguments = copy.copy(named)  # the manual loop empties them
            if source is not None:
                source.rewind()
                arguments.update(dict.fromkeys(arguments, source))  # type: ignore[attr-defined]
            output.clear()
            output.update(run(arguments))
            loss = output.get("loss")
            return loss if isinstance(loss, Tensor) else None  # other scalars may be anything

        batch_index = self._trainer.fit_loop.epoch_loop.total_batch_idx
        try:
            self._watch.step(step, batch=named.get("batch"), step_index=batch_index)
        except NonFiniteError:
            moment.restore()
            raise
        if self._watch.num_left_out != num_left_out:
            moment.restore()
            return {}
        return output


class _Repeatable:
    """The iterator of `training_step(self, dataloader_iter)`; what a step took is given once more to its repetition."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator, self._taken, self._position = iterator, [], 0  # type: ignore[var-annotated]

    def __iter__(self) -> "_Repeatable":
        return self

    def __next__(self) -> Any:
        if self._position == len(self._taken):
            self._taken.append(next(self._iterator))
        self._position += 1
        return self._taken[self._position - 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def rewind(self) -> None:
        """The next item is the first again."""
        self._position = 0


class Moment:
    """What Lightning itself counts and collects while a batch is treated, before that."""

    def __init__(self, trainer: Any, metrics: Iterable[Any]) -> None:
        """metrics: of torchmetrics, in the module."""
        self._trainer, self._module = trainer, trainer.lightning_module
        loop = trainer.fit_loop.epoch_loop
        self._progress = [loop.automatic_optimization.optim_progress, loop.manual_optimization.optim_step_progress]
        self._counts = [progress.state_dict() for progress in self._progress]
        self._results = loop._results
        self._logged = {key: dict(vars(metric)) for key, metric in self._results.items()}
        self._of_results = dict(vars(self._results))
        self._hook = self._module._current_fx_name
        self._states = [(metric, _state_of(metric)) for metric in metrics]
        self._trains = [] if self._module.automatic_optimization else [p.requires_grad for p in self._parameters()]
        self._toggled = dict(getattr(self._module, "_param_requires_grad_state", {}))

    def _parameters(self) -> Iterator[Any]:
        return self._module.parameters()  # type: ignore[no-any-return]

    def restore(self) -> None:
        """Put everything back; without effect where nothing was done since."""
        manual = self._progress[1].total
        if manual.ready != manual.completed:  # the optimizer's step was left by an exception
            with suppress(ValueError):
                self._trainer.profiler.stop("optimizer_step")
        for progress, counts in zip(self._progress, self._counts, strict=True):
            progress.load_state_dict(counts)
        for key in [key for key in self._results if key not in self._logged]:
            del self._results[key]
        for key, values in self._logged.items():
            vars(self._results[key]).update(values)
        vars(self._results).update(self._of_results)
        self._module._current_fx_name = self._hook
        for metric, values in self._states:
            vars(metric).update(_copied(values))
        for parameter, trains in zip(self._parameters(), self._trains, strict=False):
            if parameter.requires_grad != trains:
                parameter.requires_grad = trains
        if self._trains:
            self._module._param_requires_grad_state = dict(self._toggled)


_COUNTERS = ("_update_count", "_computed", "_forward_cache")


def _state_of(metric: Any) -> dict[str, Any]:
    """States of a torchmetrics metric and whether they have been computed; copies."""
    return _copied({name: vars(metric)[name] for name in (*metric._defaults, *_COUNTERS) if name in vars(metric)})


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()  # states are added to in place
        return list(value) if isinstance(value, list) else value

    return {name: copied(value) for name, value in values.items()}


def _choices(trainer: Any) -> Iterator[tuple[str, bool, str]]:
    """Metrics by which callbacks and schedulers choose, whether a higher value is better for them, and their names."""
    owners = [(getattr(one, "monitor", None), one) for one in trainer.callbacks if getattr(one, "save_top_k", 1) != 0]
    owners += [(config.monitor, config.scheduler) for config in trainer.lr_scheduler_configs]
    for monitor, owner in owners:
        if isinstance(monitor, str) and getattr(owner, "mode", None) in ("min", "max"):
            yield monitor, owner.mode == "max", type(owner).__name__


def _holds(optimizer: Any, parameters: set[int]) -> bool:
    """Whether it steps any of these; Lightning makes one that steps nothing where the module makes none."""
    return any(id(p) in parameters for group in getattr(optimizer, "param_groups", []) for p in group["params"])
