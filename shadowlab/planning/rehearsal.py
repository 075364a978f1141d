"""One round of training as `train` does it, for its memory: encode, step, validation; on real or on fake tensors.

Legend: B samples of a micro-batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from shadowlab.encoded_batch import EncodedBatch
from shadowlab.evaluation import FixedGrid
from shadowlab.settings import Config
from shadowlab.tasks import Task
from shadowlab.training import StepPlace, Trainee, forward_backward, training_step

ENCODE, FORWARD, BACKWARD, OPTIMIZER, EMA_STEP, VALIDATION = ALL_MOMENTS = (
    "encoding",
    "forward",
    "backward",
    "optimizer step",
    "EMA step",
    "validation",
)


class Rehearsal:
    """Runs what `train` runs between two validations, with inputs of the configured shapes.

    The step is one between two that measure every layer.

    Args:
        enter: called with each of ALL_MOMENTS as the work reaches it. keep_on_host: called with what `train` leaves in
            the host's memory. most: micro-batches of a step that are worked on; of all others no more than their
            encoded tensors is there, for from the second on, each needs what the one before it did.
    """

    def __init__(
        self,
        config: Config,
        trainee: Trainee,
        task: Task[Any],
        enter: Callable[[str], None],
        keep_on_host: Callable[[Any], None],
        most: int | None = None,
    ) -> None:
        self._config, self._trainee, self._task, self._enter = config, trainee, task, enter
        self._keep_on_host, self._most = keep_on_host, most
        self._waiting: list[list[Tensor]] = []

    def make_states(self) -> None:
        """Gradients and optimizer states as a step before leaves them."""
        for parameter in self._trainee.parameters().values():
            parameter.grad = torch.zeros_like(parameter)
        self._trainee.optimizer.step()

    def run(self) -> None:
        """Encode, step, validate."""
        encoded = self._encode()
        with self._announcing_moments():
            training_step(self._trainee, encoded, self._place)
        del encoded
        self._waiting.clear()
        self.validate()

    def forward_and_backward(self) -> None:
        """Encode and a step that ends before the optimizer."""
        encoded = self._encode()
        with self._announcing_moments():
            forward_backward(self._trainee, self._trainee.model, encoded, self._place)

    def validate(self) -> None:
        """The fixed grid with one chunk, one t and one noise. All else in it takes more time, not more memory."""
        chunk = min(self._config.train.batch_size, self._config.validation.num_samples)
        self._enter(VALIDATION)
        with self._trainee.averaged_weights(), torch.no_grad():
            pictures = self._task.random_batch(chunk)
            self._keep_on_host(vars(pictures))
            grid = FixedGrid(self._task, pictures, timesteps=(0.5,), num_noises=1, seed=0, chunk=chunk)
            grid.evaluate(self._trainee.unet, self._trainee.precision, responses=False)

    @property
    def _place(self) -> StepPlace:
        train = self._config.train
        return StepPlace(1, 0, train.batch_size * train.gradient_accumulation_steps)

    def _encode(self) -> list[EncodedBatch]:
        train = self._config.train
        self._enter(ENCODE)
        count = train.gradient_accumulation_steps
        encoded: list[EncodedBatch] = []
        for number in range(count if self._most is None else min(count, self._most)):
            if number == 1:
                one = list(encoded[0].tensors().values())
                waiting = range(0 if self._most is None else count - self._most)
                self._waiting = [[tensor.clone() for tensor in one] for _ in waiting]
            encoded.append(self._task.encode(self._task.random_batch(train.batch_size), torch.arange(train.batch_size)))
        return encoded

    @contextmanager
    def _announcing_moments(self) -> Iterator[None]:
        unet, optimizer = self._trainee.unet, self._trainee.optimizer
        handles = [
            unet.register_forward_pre_hook(lambda *_: self._enter(FORWARD)),
            unet.register_forward_hook(lambda *_: self._enter(BACKWARD)),
            optimizer.register_step_pre_hook(lambda *_: self._enter(OPTIMIZER)),
            optimizer.register_step_post_hook(lambda *_: self._enter(EMA_STEP)),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
