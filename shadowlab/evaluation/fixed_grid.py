"""Evaluation on a fixed grid of (sample, t, noise): numbers that can be compared between steps and runs.

With random t and noise the training loss never reaches 0 and two of its values cannot be compared; here the same
samples meet the same noise at the same t every time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shadowlab.data.sample import Batch
from shadowlab.evaluation.metrics import r_squared
from shadowlab.flow import integrate, interpolate, loss_per_sample, velocity
from shadowlab.precision import Precision
from shadowlab.seeding import normal
from shadowlab.task import EncodedBatch, Task
from shadowlab.unet import predict_velocity


@dataclass(frozen=True)
class GridResult:
    """One evaluation.

    loss: mean of loss_by_t. loss_by_t: t to mean squared error of the velocity. r2: variance of the latents that
    one-step generation explains. metrics: means over samples and noises of one-step generation in pixels.
    black_metrics: the same for an all-black prediction. prediction: (n, 1, H, W) of the first noise.
    """

    loss: float
    loss_by_t: dict[float, float]
    r2: float
    metrics: dict[str, float]
    black_metrics: dict[str, float]
    prediction: Tensor

    def numbers(self) -> dict[str, float]:
        """Flat name -> value, for records."""
        flat = {"loss": self.loss, "r2": self.r2, **self.metrics}
        flat |= {f"loss_t{t:g}": value for t, value in self.loss_by_t.items()}
        return flat | {f"black_{name}": value for name, value in self.black_metrics.items()}


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
        shape = self.encoded.data.shape[1:]
        self._noises = [
            torch.stack([normal(shape, seed, "grid", name, k) for name in batch.ids]).to(self.encoded.data.device)
            for k in range(num_noises)
        ]

    @torch.no_grad()
    def evaluate(self, unet: torch.nn.Module, precision: Precision) -> GridResult:
        """Judge `unet`; it is left in the mode it was in."""
        was_training = unet.training
        unet.eval()
        try:
            generated, losses = self._run(unet, precision)
        finally:
            unet.train(was_training)
        pictures = [self._decode(latents) for latents in generated]
        loss_by_t = {t: float(torch.cat(values).mean()) for t, values in losses.items()}
        return GridResult(
            loss=sum(loss_by_t.values()) / len(loss_by_t),
            loss_by_t=loss_by_t,
            r2=r_squared(torch.cat(generated), self.encoded.data.repeat(len(generated), 1, 1, 1)),
            metrics=_mean_metrics([self.task.metrics(picture, self.batch) for picture in pictures]),
            black_metrics=_mean_metrics([self.task.metrics(torch.zeros_like(pictures[0]), self.batch)]),
            prediction=pictures[0],
        )

    def _run(self, unet: torch.nn.Module, precision: Precision) -> tuple[list[Tensor], dict[float, list[Tensor]]]:
        """Latents (n, 4, h, w) generated from each noise, and the losses at each t."""
        generated: list[Tensor] = []
        losses: dict[float, list[Tensor]] = {t: [] for t in self._timesteps}
        for noise in self._noises:
            parts = []
            for rows in torch.arange(len(self.batch)).split(self._chunk):
                encoded, eps = self.encoded.select(rows), noise[rows]
                for t in self._timesteps:
                    times = torch.full((len(rows),), t, device=eps.device)
                    predicted = _predict(unet, encoded, precision)(interpolate(eps, encoded.data, times), times)
                    losses[t].append(loss_per_sample(predicted, velocity(eps, encoded.data)))
                parts.append(integrate(_predict(unet, encoded, precision), eps, 1))
            generated.append(torch.cat(parts))
        return generated, losses

    def _decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.task.decode(part) for part in latents.split(self._chunk)])


def _predict(unet: torch.nn.Module, encoded: EncodedBatch, precision: Precision) -> Callable[[Tensor, Tensor], Tensor]:
    def predict(x: Tensor, t: Tensor) -> Tensor:
        with precision.autocast(x.device):
            return predict_velocity(unet, x, t, encoded.concatenated, encoded.embedding)

    return predict


def _encode_in_chunks(task: Task, batch: Batch, chunk: int) -> EncodedBatch:
    parts = []
    for rows in torch.arange(len(batch)).split(chunk):
        piece = Batch(
            ids=[batch.ids[i] for i in rows.tolist()],
            object_image=batch.object_image[rows],
            mask=batch.mask[rows],
            shadow=batch.shadow[rows],
            light=batch.light[rows],
        )
        parts.append(task.encode(piece, rows))
    return EncodedBatch(
        ids=list(batch.ids),
        positions=torch.cat([part.positions for part in parts]),
        data=torch.cat([part.data for part in parts]),
        concatenated=torch.cat([part.concatenated for part in parts]),
        embedding=torch.cat([part.embedding for part in parts]),
    )


def _mean_metrics(results: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.cat([result[name] for result in results]).mean()) for name in results[0]}
