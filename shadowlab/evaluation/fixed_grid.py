"""Evaluation on a fixed grid of (sample, t, noise): numbers that can be compared between steps and runs.

With random t and noise the training loss never reaches 0 and two of its values cannot be compared; here the same
samples meet the same noise at the same t every time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diagnostics import eagerly
from shadowlab.distributed import Processes
from shadowlab.evaluation.statistics import r_squared
from shadowlab.models import Precision, integrate, interpolate, loss_per_sample, predict_velocity, velocity
from shadowlab.seeding import normal
from shadowlab.tasks import Batch, EncodedBatch, Task


@dataclass(frozen=True)
class GridResult:
    """One evaluation.

    loss: mean of loss_by_t. loss_by_t: t to mean squared error of the velocity. r2: variance of the latents that
    one-step generation explains. metrics: means over samples and noises of one-step generation in pixels.
    black_metrics: the same for an all-black prediction. prediction: (n, 1, H, W) of the first noise.
    responses: condition to the relative change of one sample's velocity at t = 0 under another light, which differs in
    this condition alone; 0 where the model does not see it.
    """

    loss: float
    loss_by_t: dict[float, float]
    r2: float
    metrics: dict[str, float]
    black_metrics: dict[str, float]
    prediction: Tensor
    responses: dict[str, float]

    def numbers(self) -> dict[str, float]:
        """Flat name -> value, for records."""
        flat = {"loss": self.loss, "r2": self.r2, **self.metrics}
        flat |= {f"loss_t{t:g}": value for t, value in self.loss_by_t.items()}
        flat |= {f"response_{name}": value for name, value in self.responses.items()}
        return flat | {f"black_{name}": value for name, value in self.black_metrics.items()}


@dataclass(frozen=True)
class _Part:
    """One noise of some samples, on the CPU. latents: (B, 4, h, w) generated from it. pictures: (B, 1, H, W). losses:
    t -> (B,). metrics: name -> (B,)."""

    number: int
    latents: Tensor
    pictures: Tensor
    losses: dict[float, Tensor]
    metrics: dict[str, Tensor]


class FixedGrid:
    """A set of samples with the t and noise they are judged at.

    Args:
        batch: pixels, (n, ...), on any device. timesteps: t in [0, 1). num_noises: draws per sample.
        seed: with a sample's id it decides that sample's noise.
        chunk: samples that go through the model together.
    """

    def __init__(
        self, task: Task, batch: Batch, *, timesteps: Sequence[float], num_noises: int, seed: int, chunk: int
    ) -> None:
        self.task = task
        self.batch = batch
        self.encoded = _encode_in_chunks(task, batch, chunk)
        self._timesteps, self._chunk = tuple(timesteps), chunk
        self._black_metrics = _mean_metrics([task.metrics(torch.zeros_like(task.target(batch)), batch)])
        shape = self.encoded.data.shape[1:]
        self._noises = [
            torch.stack([normal(shape, seed, "grid", name, k) for name in batch.ids]).to(self.encoded.data.device)
            for k in range(num_noises)
        ]

    @torch.no_grad()
    def evaluate(
        self,
        unet: torch.nn.Module,
        precision: Precision,
        processes: Processes | None = None,
        responses: bool = True,
    ) -> GridResult:
        """Judge `unet`, run eagerly; it is left in the mode it was in.

        processes: share the work; every one of them must call, and all get the same result. responses: ask for them,
        too: one forward of one sample for each condition.
        """
        was_training = unet.training
        unet.eval()
        try:
            with eagerly():  # for these shapes compilation would begin anew
                parts = self._shared_out(unet, precision, processes)
                answers = self._responses(unet, precision) if responses else {}
        finally:
            unet.train(was_training)
        parts.sort(key=lambda part: part.number)
        num_chunks = len(parts) // len(self._noises)
        by_noise = [parts[k : k + num_chunks] for k in range(0, len(parts), num_chunks)]
        generated = [torch.cat([part.latents for part in one]) for one in by_noise]
        loss_by_t = {t: float(torch.cat([part.losses[t] for part in parts]).mean()) for t in self._timesteps}
        return GridResult(
            loss=sum(loss_by_t.values()) / len(loss_by_t),
            loss_by_t=loss_by_t,
            r2=r_squared(torch.cat(generated), self.encoded.data.cpu().repeat(len(generated), 1, 1, 1)),
            metrics=_mean_metrics([part.metrics for part in parts]),
            black_metrics=self._black_metrics,
            prediction=torch.cat([part.pictures for part in by_noise[0]]),
            responses=answers,
        )

    @torch.no_grad()
    def light_sweep(
        self, unet: torch.nn.Module, precision: Precision, steps: int = 5
    ) -> dict[str, list[tuple[float, Tensor]]]:
        """The first sample's shadow, generated in one step under lights that differ in one condition: condition to
        (value, (1, H, W) in [0, 1] on the CPU). Its noise is the same in all.

        One picture at a time. Of several processes every one must call: a sharded model's forward takes them all.
        """
        was_training = unet.training
        unet.eval()
        try:
            with eagerly():
                lights = self.task.sweep(self.batch.light[:1], steps)
                return {
                    name: [(value, self._generated(unet, precision, light)) for value, light in row]
                    for name, row in lights.items()
                }
        finally:
            unet.train(was_training)

    def _generated(self, unet: torch.nn.Module, precision: Precision, light: Tensor) -> Tensor:
        first = torch.tensor([0])
        encoded = replace(self.encoded.select(first), embedding=self.task.embed(light))
        latents = integrate(_predict(unet, encoded, precision), self._noises[0][first], 1)
        return self.task.decode(latents)[0].cpu()

    def _responses(self, unet: torch.nn.Module, precision: Precision) -> dict[str, float]:
        """One sample at a time: no more memory than the rest of the evaluation."""
        first = torch.tensor([self.batch.ids.index(min(self.batch.ids))])
        encoded, eps = self.encoded.select(first), self._noises[0][first]
        t = torch.zeros(1, device=eps.device)
        own = _predict(unet, encoded, precision)(eps, t)
        scale = float(own.norm()) or 1.0  # a silent model answers with 0, not with a division by it
        responses = {}
        for name, light in self.task.other_lights(self.batch.light[first]).items():
            other = replace(encoded, embedding=self.task.embed(light))
            responses[name] = float((_predict(unet, other, precision)(eps, t) - own).norm()) / scale
        return responses

    def _shared_out(self, unet: torch.nn.Module, precision: Precision, processes: Processes | None) -> list["_Part"]:
        """All parts, each made by one process."""
        chunks = torch.arange(len(self.batch)).split(self._chunk)
        work = [(noise, rows) for noise in self._noises for rows in chunks]
        if processes is None:
            return [self._part(number, *one, unet, precision) for number, one in enumerate(work)]
        own = []
        for first in range(0, len(work), processes.count):
            # One without work of its own repeats some: a sharded model's forward takes every process.
            number = first + processes.rank
            part = self._part(number, *work[number % len(work)], unet, precision)
            own += [part] if number < len(work) else []
        return processes.gather(own)

    def _part(self, number: int, noise: Tensor, rows: Tensor, unet: torch.nn.Module, precision: Precision) -> "_Part":
        encoded, eps = self.encoded.select(rows), noise[rows]
        predict = _predict(unet, encoded, precision)
        losses = {}
        for t in self._timesteps:
            times = torch.full((len(rows),), t, device=eps.device)
            predicted = predict(interpolate(eps, encoded.data, times), times)
            losses[t] = loss_per_sample(predicted, velocity(eps, encoded.data)).cpu()
        latents = integrate(predict, eps, 1)
        pictures = self.task.decode(latents)
        metrics = {name: v.cpu() for name, v in self.task.metrics(pictures, self.batch.select(rows)).items()}
        return _Part(number, latents.cpu(), pictures.cpu(), losses, metrics)


def _predict(unet: torch.nn.Module, encoded: EncodedBatch, precision: Precision) -> Callable[[Tensor, Tensor], Tensor]:
    def predict(x: Tensor, t: Tensor) -> Tensor:
        with precision.autocast(x.device):
            return predict_velocity(unet, x, t, encoded.concatenated, encoded.embedding)

    return predict


def _encode_in_chunks(task: Task, batch: Batch, chunk: int) -> EncodedBatch:
    parts = []
    for rows in torch.arange(len(batch)).split(chunk):
        parts.append(task.encode(batch.select(rows), rows))
    return EncodedBatch(
        ids=list(batch.ids),
        positions=torch.cat([part.positions for part in parts]),
        data=torch.cat([part.data for part in parts]),
        concatenated=torch.cat([part.concatenated for part in parts]),
        embedding=torch.cat([part.embedding for part in parts]),
    )


def _mean_metrics(results: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.cat([result[name] for result in results]).mean()) for name in results[0]}
