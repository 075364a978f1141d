"""Evaluation on a fixed grid of (sample, t, noise): numbers that can be compared between steps and runs.

With random t and noise the training loss never reaches 0 and two of its values cannot be compared; here the same
samples meet the same noise at the same t every time.

Legend: B batch, n samples, C channels, H W pixels, h w latents (H/8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diagnostics import eagerly
from shadowlab.distributed import Processes
from shadowlab.encoded_batch import EncodedBatch, joined
from shadowlab.interruption import signals
from shadowlab.metrics import r_squared
from shadowlab.models import Objective, Precision, Predict, loss_where_known, predict
from shadowlab.seeding import normal
from shadowlab.tasks import Task, TaskBatch


@dataclass(frozen=True, eq=False)
class GridResult:
    """One evaluation."""

    loss: float
    """Mean of `loss_by_t`."""
    loss_by_t: dict[float, float]
    """t -> mean loss of the objective."""
    r2: float
    """Variance of the latents that one-step generation explains."""
    metrics: dict[str, float]
    """The task's, means over samples and noises of one-step generation in pixels."""
    baselines: dict[str, dict[str, float]]
    """The same for each of the task's baselines."""
    prediction: Tensor
    """(n, C, H, W) of the first noise."""
    responses: dict[str, float]
    """Condition -> relative change of one sample's prediction at t = 0 where this condition alone is another; 0 where
    the model does not see it."""
    region_losses: dict[str, float] = field(default_factory=dict)
    """Region of the latents, as the task names it -> the mean loss over it alone."""

    def numbers(self) -> dict[str, float]:
        """Flat name -> value, for records."""
        flat = {"loss": self.loss, "r2": self.r2, **self.metrics}
        flat |= {f"loss_t{t:g}": value for t, value in self.loss_by_t.items()}
        flat |= {f"loss_{name}": value for name, value in self.region_losses.items()}
        flat |= {f"response_{name}": value for name, value in self.responses.items()}
        for baseline, metrics in self.baselines.items():
            flat |= {f"{baseline}_{name}": value for name, value in metrics.items()}
        return flat

    def text(self, task: Task[Any]) -> str:
        """The task's first metrics, and those of its baseline: `soft IoU 0.811 (all black 0.000), RMSE ...`."""
        shown = []
        for metric in task.metrics:
            one = f"{metric.text} {self.metrics[metric.name]:{metric.form}}"
            if task.baseline is not None:
                other = self.baselines[task.baseline.name][metric.name]
                one += f" ({task.baseline.text} {other:{metric.form}})"
            shown.append(one)
        return ", ".join(shown)

    def line(self, task: Task[Any]) -> str:
        """The same in a line of a log, which has the baseline's last metric alone: `soft IoU 0.360  RMSE ...`."""
        shown = [f"{metric.text} {self.metrics[metric.name]:{metric.form}}" for metric in task.metrics]
        if task.baseline is not None and task.metrics:
            last = task.metrics[-1]
            shown.append(f"({task.baseline.text} {self.baselines[task.baseline.name][last.name]:{last.form}})")
            shown[-2:] = [" ".join(shown[-2:])]
        return "  ".join(shown)


@dataclass(frozen=True, eq=False)
class _Part:
    """One noise of some samples, on the CPU."""

    number: int
    latents: Tensor
    """(B, 4, h, w), generated from it."""
    pictures: Tensor
    """(B, C, H, W)."""
    losses: dict[float, Tensor]
    """t -> (B,)."""
    metrics: dict[str, Tensor]
    """Name -> (B,)."""
    region_losses: dict[str, Tensor]


class FixedGrid:
    """A set of samples with the t and noise they are judged at.

    Args:
        batch: n samples, on any device. timesteps: t in [0, 1). num_noises: draws per sample.
        seed: with a sample's id it decides that sample's noise.
        chunk: samples that go through the model together.
    """

    def __init__(
        self, task: Task[Any], batch: TaskBatch, *, timesteps: Sequence[float], num_noises: int, seed: int, chunk: int
    ) -> None:
        self.task = task
        self.batch = batch
        self.encoded = _encode_in_chunks(task, batch, chunk)
        self._timesteps, self._chunk = tuple(timesteps), chunk
        self._baselines = {
            name: _mean_metrics([task.judge(pictures, batch)]) for name, pictures in task.baselines(batch).items()
        }
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

        processes: share the work; every one of them must call, and all get the same result. responses: measure
        them, too: one forward of one sample for each condition.
        """
        was_training = unet.training
        unet.eval()
        try:
            with eagerly():  # for these shapes compilation would start again
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
            r2=r_squared(*_where_known(torch.cat(generated), self.encoded, len(generated))),
            metrics=_mean_metrics([part.metrics for part in parts]),
            baselines=self._baselines,
            prediction=torch.cat([part.pictures for part in by_noise[0]]),
            responses=answers,
            region_losses=_mean_metrics([part.region_losses for part in parts]),
        )

    def encode(self, batch: TaskBatch) -> EncodedBatch:
        """As the grid's own samples were encoded, a chunk at a time."""
        return _encode_in_chunks(self.task, batch, self._chunk)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """t of the grid, in [0, 1)."""
        return self._timesteps

    @torch.no_grad()
    def loss_when_given(
        self,
        unet: torch.nn.Module,
        precision: Precision,
        t: float,
        *,
        encoded: EncodedBatch | None = None,
        told: float | None = None,
        others: Tensor | None = None,
    ) -> float:
        """Mean loss of the first noise at one t, where the model is given something else than is right; what it is
        judged by stays. Run eagerly; the model is left in the mode it was in.

        Args:
            encoded: the same samples with other conditions.
            told: the t that the model is told, in [0, 1).
            others: int64 (n,), the sample whose x_t each one is given.
        """
        was_training, objective, noise = unet.training, self.task.objective, self._noises[0]
        given, rows = self.encoded if encoded is None else encoded, torch.arange(len(self.batch))
        losses = []
        unet.eval()
        try:
            with eagerly():
                for part in rows.split(self._chunk):
                    signals.stop_if_asked()
                    times = torch.full((len(part),), t, device=noise.device)
                    shown = part if others is None else others[part]
                    x_t = objective.noised(noise[shown], self.encoded.data[shown], times)
                    said = times if told is None else torch.full_like(times, told)
                    predicted = _predict(unet, objective, given.select(part), precision)(x_t, said)
                    own = self.encoded.select(part)
                    loss = loss_where_known(objective, predicted, noise[part], own.data, times, own.valid)
                    losses.append(loss.cpu())
        finally:
            unet.train(was_training)
        return float(torch.cat(losses).mean())

    @torch.no_grad()
    def loss_without_x(self, t: float, draws: int = 8) -> float:
        """Mean loss at t of the best prediction that knows the target and not x_t: the mean over noises."""
        objective, data = self.task.objective, self.encoded.data
        times = torch.full((len(data),), t, device=data.device)
        mean = torch.zeros_like(data)
        for k in range(draws):
            noise = torch.stack([normal(data.shape[1:], k, "blind", name) for name in self.batch.ids]).to(data.device)
            mean += objective.target(noise, data, times) / draws
        valid = self.encoded.valid
        return float(loss_where_known(objective, mean, self._noises[0], data, times, valid).mean())

    @torch.no_grad()
    def loss_without_t(self, t: float) -> float:
        """Mean loss at t of a prediction that knows the target and takes x_t for noise, as at t = 0."""
        objective, data, noise = self.task.objective, self.encoded.data, self._noises[0]
        times = torch.full((len(data),), t, device=data.device)
        x_t = objective.noised(noise, data, times)
        taken_for = objective.target(x_t, data, torch.zeros_like(times))
        return float(loss_where_known(objective, taken_for, noise, data, times, self.encoded.valid).mean())

    @torch.no_grad()
    def answer_to_t(self, unet: torch.nn.Module, precision: Precision, t: float) -> float:
        """Relative change of the first sample's prediction at t where the model is told t = 0."""
        first, objective = torch.tensor([0]), self.task.objective
        noise, data = self._noises[0][first], self.encoded.data[first]
        times = torch.full((1,), t, device=noise.device)
        x_t, was_training = objective.noised(noise, data, times), unet.training
        unet.eval()
        try:
            with eagerly():
                predicted_at = _predict(unet, objective, self.encoded.select(first), precision)
                own, other = predicted_at(x_t, times), predicted_at(x_t, torch.zeros_like(times))
        finally:
            unet.train(was_training)
        return float((other - own).norm()) / (float(own.norm()) or 1.0)

    @torch.no_grad()
    def sweep(
        self, unet: torch.nn.Module, precision: Precision, steps: int = 5
    ) -> dict[str, list[tuple[float, Tensor]]]:
        """The first sample, generated in one step where one condition takes `steps` values: condition to (value,
        (C, H, W) in [0, 1] on the CPU). Its noise is the same in all.

        One picture at a time. Of several processes every one must call: a sharded model's forward takes them all.
        """
        was_training = unet.training
        unet.eval()
        first = torch.tensor([0])
        try:
            with eagerly():
                swept = self.task.sweep(self.batch.select(first), self.encoded.select(first), steps)
                return {
                    name: [(value, self._generated(unet, precision, encoded)) for value, encoded in row]
                    for name, row in swept.items()
                }
        finally:
            unet.train(was_training)

    def _generated(self, unet: torch.nn.Module, precision: Precision, encoded: EncodedBatch) -> Tensor:
        objective = self.task.objective
        latents = objective.generate(_predict(unet, objective, encoded, precision), self._noises[0][:1], 1)
        return self.task.decode(latents)[0].cpu()

    def _responses(self, unet: torch.nn.Module, precision: Precision) -> dict[str, float]:
        """One sample at a time: no more memory than the rest of the evaluation."""
        first = torch.tensor([self.batch.ids.index(min(self.batch.ids))])
        encoded, eps, objective = self.encoded.select(first), self._noises[0][first], self.task.objective
        t = torch.zeros(1, device=eps.device)
        own = _predict(unet, objective, encoded, precision)(eps, t)
        scale = float(own.norm()) or 1.0  # a silent model answers with 0, not with a division by it
        responses = {}
        for probe in self.task.probes(self.batch.select(first), encoded, "far"):
            other = _predict(unet, objective, probe.encoded, precision)(eps, t)
            responses[probe.name] = float((other - own).norm()) / scale
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
        signals.stop_if_asked()
        encoded, eps = self.encoded.select(rows), noise[rows]
        objective = self.task.objective
        predicted_at = _predict(unet, objective, encoded, precision)
        regions: dict[str, Tensor] = getattr(self.task, "regions", _no_regions)(encoded)
        losses: dict[float, Tensor] = {}
        of_regions: dict[str, list[Tensor]] = {name: [] for name in regions}
        for t in self._timesteps:
            times = torch.full((len(rows),), t, device=eps.device)
            predicted = predicted_at(objective.noised(eps, encoded.data, times), times)
            losses[t] = loss_where_known(objective, predicted, eps, encoded.data, times, encoded.valid).cpu()
            for name, region in regions.items():
                one = loss_where_known(objective, predicted, eps, encoded.data, times, region)
                of_regions[name].append(one.cpu())
        latents = objective.generate(predicted_at, eps, 1)
        pictures = self.task.decode(latents)
        metrics = {name: v.cpu() for name, v in self.task.judge(pictures, self.batch.select(rows)).items()}
        in_regions = {name: torch.cat(found) for name, found in of_regions.items()}
        return _Part(number, latents.cpu(), pictures.cpu(), losses, metrics, in_regions)


def _no_regions(encoded: EncodedBatch) -> dict[str, Tensor]:
    return {}


def _predict(unet: torch.nn.Module, objective: Objective, encoded: EncodedBatch, precision: Precision) -> Predict:
    def predicted_at(x: Tensor, t: Tensor) -> Tensor:
        with precision.autocast(x.device):
            return predict(unet, x, objective.timesteps(t), encoded.conditions)

    return predicted_at


def _where_known(generated: Tensor, encoded: EncodedBatch, draws: int) -> tuple[Tensor, Tensor]:
    """Generated latents (draws n, 4, h, w) and the targets', both the target's mean of each channel where no target is
    known, so that neither error nor variance is there."""
    data = encoded.data.cpu().repeat(draws, 1, 1, 1)
    if encoded.valid is None:
        return generated, data
    known = encoded.valid.cpu().repeat(draws, 1, 1, 1)
    mean = (data * known).sum(dim=(0, 2, 3), keepdim=True) / known.sum().clamp_min(1)
    return torch.where(known > 0, generated, mean), torch.where(known > 0, data, mean)


def _encode_in_chunks(task: Task[Any], batch: TaskBatch, chunk: int) -> EncodedBatch:
    encoded = []
    for rows in torch.arange(len(batch)).split(chunk):
        signals.stop_if_asked()
        encoded.append(task.encode(batch.select(rows), rows))
    return joined(encoded)


def _mean_metrics(results: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.cat([result[name] for result in results]).mean()) for name in results[0]}
