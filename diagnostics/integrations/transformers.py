"""A `Watch` inside the `Trainer` of Hugging Face's transformers, and in what is derived from it.

    from diagnostics.integrations.transformers import WatchMixin

    class WatchedTrainer(WatchMixin, Trainer):
        watch_options = {"incidents": "incidents"}

A watched step is one micro-batch: `training_step`, and where an accumulation ends also clipping and the optimizer's
step, which the trainer makes elsewhere in its loop. The trainer's own code runs, in its own order: the mixin opens the
step before `training_step` and closes it after `optimizer.step()`.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from diagnostics.integrations.options import checked_options
from diagnostics.patching import replaced
from diagnostics.watching import Watch

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "diagnostics.integrations.transformers needs transformers, which is not installed: "
        'pip install "transformers[torch]"'
    ) from error


class WatchMixin:
    """Goes before a trainer among the bases of a class, and stops its `train` with a `NonFiniteError` before anything
    bad is kept.

    Steps are numbered as micro-batches are, from 0: `global_step * gradient_accumulation_steps` and those since. What
    the step has changed in the trainer is put back before it is repeated and when the error is raised: its numbers, its
    state's numbers and the sum of losses. A checkpoint that is saved after the error is that of the step before.
    """

    watch_options: ClassVar[Mapping[str, Any]] = {}
    """Options of `Watch`, without model and optimizer."""

    watch: Watch | None = None
    """The watch of the training that runs or has run; None before the first step."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Options and the order of the bases are examined here, and not hours later.

        Raises:
            TypeError: there is no such option, or a trainer stands before the mixin.
        """
        super().__init_subclass__(**kwargs)
        checked_options(cls.watch_options)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(WatchMixin):
            raise TypeError(f"{cls.__name__}: WatchMixin goes first, as in `class {cls.__name__}(WatchMixin, Trainer)`")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, with its steps under watch.

        Raises:
            NonFiniteError: a step met a value that is not finite. Everything is as before that step.
        """
        steps = _Steps(self)
        with replaced(self, "training_step", steps.around_training_step):
            try:
                result = super().train(*args, **kwargs)  # type: ignore[misc]
                steps.close()
            except BaseException as error:  # of a callback between the two ends of a step, too
                if not steps.close(error):
                    raise
                result = None
            finally:
                steps.release()
        return result


class _Steps:
    """Of one training: opened before `training_step`, closed after it or after the optimizer's step."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._model: Any = None
        self._optimizer: Any = None
        self._optimizer_patch = ExitStack()
        self._attempts: Any = None
        self._attempt: Any = None  # the step that is open
        self._moment: Moment | None = None
        self._body: Callable[[], Any] = lambda: None
        self._ends_accumulation = False
        self._micro_batch = 0  # of this accumulation
        self._is_over = False  # before the trainer has come to its optimizer
        self._num_left_out = 0

    # The two places of the trainer's loop

    def around_training_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """In place of `Trainer.training_step(model, inputs, ...)`."""

        @functools.wraps(original)
        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.close()  # a trainer that did not step its optimizer
            self._prepare(model)
            self._open(functools.partial(original, model, inputs, *args, **kwargs), inputs)
            loss = torch.full((), torch.nan, device=self._trainer.args.device)
            try:
                loss = self._body()
                self._attempt.result = loss.detach() if isinstance(loss, Tensor) else None
            except BaseException as error:
                if not self.close(error):
                    raise
                self._is_over = self._ends_accumulation
                return loss
            if not self._ends_accumulation:
                self.close()
            return loss

        return training_step

    def _around_optimizer_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """In place of the optimizer's `step`."""

        @functools.wraps(original)  # schedulers look for their mark on it
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._is_over:
                self._is_over = False
                return None
            if self._attempt is None:
                return original(*args, **kwargs)
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                if not self.close(error):
                    raise
                return None
            self.close()
            return result

        return step

    # A step

    def _prepare(self, model: Any) -> None:
        """A watch for this model and optimizer; the trainer may make others after it ran out of memory."""
        optimizer = self._trainer.optimizer
        if self._model is model and self._optimizer is optimizer:
            return
        self.release()
        self._model, self._optimizer = model, optimizer
        options = checked_options(self._trainer.watch_options)
        options.setdefault("accelerator", self._trainer.accelerator)
        self._trainer.watch = Watch(model, optimizer, **options)
        arguments = self._trainer.args
        name, is_greater = arguments.metric_for_best_model, arguments.greater_is_better
        if arguments.load_best_model_at_end and name is not None and is_greater is not None:
            kept = self._trainer.watch._watched.contracts
            kept.add_choice(name, higher_is_better=bool(is_greater), by="greater_is_better")
        self._optimizer_patch.enter_context(replaced(optimizer, "step", self._around_optimizer_step))

    def _open(self, body: Callable[[], Any], inputs: Any) -> None:
        trainer = self._trainer
        self._ends_accumulation = bool(trainer.accelerator.sync_gradients)
        index = trainer.state.global_step * trainer.args.gradient_accumulation_steps + self._micro_batch
        self._micro_batch = 0 if self._ends_accumulation else self._micro_batch + 1
        self._body, self._moment = body, Moment(trainer)
        self._tell_scheduler(is_left_out=False)
        self._num_left_out = trainer.watch.num_left_out
        self._attempts = iter(trainer.watch.attempts(batch=inputs, step_index=index))
        attempt = next(self._attempts)
        attempt.__enter__()
        self._attempt = attempt

    def close(self, error: BaseException | None = None) -> bool:
        """End the step that is open, if one is, and repeat it where it tripped. Whether `error` ends here.

        Raises:
            NonFiniteError: the step is repeated, and its origin is known.
        """
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return False
        kind, traceback = (None, None) if error is None else (type(error), error.__traceback__)
        is_swallowed = bool(attempt.__exit__(kind, error, traceback))
        if error is not None and not is_swallowed:
            return False
        assert self._moment is not None
        try:
            for again in self._attempts:
                with again:
                    self._moment.restore()
                    again.result = self._repeat()
        except BaseException:
            self._moment.restore()
            raise
        if self._trainer.watch.num_left_out != self._num_left_out:
            self._moment.restore()
            self._tell_scheduler(is_left_out=True)
        return is_swallowed

    def _tell_scheduler(self, *, is_left_out: bool) -> None:
        """The trainer asks accelerate's optimizer whether a gradient scaler left the step out, and then its scheduler
        stands still."""
        if getattr(self._optimizer, "scaler", True) is None:
            self._optimizer._is_overflow = is_left_out

    def _repeat(self) -> Any:
        """What the trainer does with a micro-batch, from `training_step` to the optimizer."""
        trainer = self._trainer
        loss = self._body()
        if self._ends_accumulation:
            if trainer.args.max_grad_norm is not None and trainer.args.max_grad_norm > 0:
                self._clip()
            handler = trainer.callback_handler
            trainer.control = handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
            self._optimizer.step()
        return loss.detach() if isinstance(loss, Tensor) else None

    def _clip(self) -> None:
        trainer = self._trainer
        clip = getattr(trainer, "_clip_grad_norm", None)
        if clip is not None:
            clip(self._model)
        else:  # before transformers 5
            trainer.accelerator.clip_grad_norm_(self._model.parameters(), trainer.args.max_grad_norm)

    def release(self) -> None:
        """Take off what was put on the optimizer."""
        self._optimizer_patch.close()


class Moment:
    """The trainer's and its state's numbers, and the sum of losses, before a step."""

    def __init__(self, trainer: Any) -> None:
        self._owners = [(owner, _numbers(owner)) for owner in (trainer, trainer.state)]
        total = getattr(trainer, "_tr_loss", None)
        self._total = (total, total.clone()) if isinstance(total, Tensor) else None

    def restore(self) -> None:
        """Put them back."""
        for owner, numbers in self._owners:
            vars(owner).update(numbers)
        if self._total is not None:
            self._total[0].copy_(self._total[1])


def _numbers(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if isinstance(value, (bool, int, float))}
