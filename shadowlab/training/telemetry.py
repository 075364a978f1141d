"""Training steps under observation: metrics.jsonl first, TensorBoard from the same record."""

import fnmatch
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor

from diagnostics.nonfinite import NonFiniteError
from diagnostics.parameters import ParameterStatistics, histogram
from diagnostics.records import RecordWriter, read_records
from shadowlab.config import DiagnosticsConfig
from shadowlab.run_folder import RunFolder
from shadowlab.task import EncodedBatch
from shadowlab.training.capture import capture_step
from shadowlab.training.sharding import whole
from shadowlab.training.step import StepOutcome, StepPlace, training_step
from shadowlab.training.trainee import Trainee
from shadowlab.views.board import Board

_INCIDENT_SECONDS = 3600.0  # a step that is looked into takes many times as long, and its evidence GiB


class Telemetry:
    """The observed training step of one stage.

    Args:
        kind: `overfit` or `train`; prefix of the scalars.
        resumed_at: steps done before; records of later steps in existing files are dropped.

    Every rank measures (hooks must not differ between ranks); only the first writes.
    """

    def __init__(
        self, run: RunFolder, trainee: Trainee, config: DiagnosticsConfig, *, kind: str, resumed_at: int = 0
    ) -> None:
        self._run, self._trainee, self._config, self._kind = run, trainee, config, kind
        trainee.watch.incidents = run.path / "incidents"
        trainee.watch.on_trip = partial(trainee.processes.expect_delay, _INCIDENT_SECONDS)
        self._parameters = ParameterStatistics(trainee.unet)
        self._writer: RecordWriter | None = None
        self._view: Board | None = None
        if trainee.processes.is_main:
            self._writer = RecordWriter(run.metrics, keep_until_step=resumed_at)
            self._view = Board(
                run.tensorboard,
                purge_step=resumed_at + 1 if resumed_at else None,
                past=read_records(run.metrics) if resumed_at > 0 else (),
            )

    def step(
        self,
        batches: Sequence[EncodedBatch],
        place: StepPlace,
        *,
        waited_seconds: float = 0.0,
        began: float | None = None,
    ) -> StepOutcome:
        """One training step, recorded under its 1-based number.

        Args:
            waited_seconds: time spent waiting for the data of this step.
            began: `time.perf_counter()` when that wait began; the share of the wait is recorded with it.

        Raises:
            NonFiniteError: as `training_step`, after the finding is written to incidents/.
        """
        number = place.step + 1
        watch = self._trainee.watch
        due = watch.is_due(place.step)
        scaler = self._trainee.scaler
        scale = scaler.get_scale() if due and scaler is not None else 1.0  # before the step may change it
        started = time.perf_counter()
        self._trainee.processes.expect_delay(0.0)
        try:
            statistics = self._parameters if due else None
            outcome = training_step(self._trainee, batches, place, parameter_statistics=statistics)
        except NonFiniteError as error:
            self._trainee.processes.at("writing the incident", patience_seconds=_INCIDENT_SECONDS)
            kept = None
            if error.incident is not None:  # on the rank that wrote it
                kept = capture_step(error.incident, self._run, self._trainee, place, kind=self._kind)
                hint = f"state before the step: {kept}\nwhat would have helped: shadowlab why {error.incident}"
                error.args = (f"{error}\n{hint}",)
            self._trainee.processes.wait()  # every rank comes here; none may end the run while another writes
            self.write({"kind": "incident", "step": number, "verdict": error.verdict.to_json(), "state": kept})
            raise
        record: dict[str, Any] = {
            "kind": self._kind,
            "step": number,
            "loss": outcome.loss,
            "grad_norm": outcome.grad_norm,
            "grad_norm_clipped": self._clipped(outcome.grad_norm),
            "loss_by_t": _by_quarter(outcome.sample_losses),
            "learning_rate": outcome.learning_rate,
            "step_seconds": time.perf_counter() - started,
            "data_wait_seconds": waited_seconds,
            "samples": self._samples(batches),
            "skipped": outcome.skipped,
            "num_skipped": watch.num_skipped,
            "memory_gib": _memory_gib(self._trainee.device),
        }
        if due and scaler is not None:
            record["loss_scale"] = scale
        if began is not None:
            record["data_wait_share"] = waited_seconds / (time.perf_counter() - began)
        if due:
            record["layers"] = {
                name: {kind: _unscaled(s.to_dict(), scale if kind == "gradient" else 1.0) for kind, s in kinds.items()}
                for name, kinds in watch.layers.items()
            }
            record["parameters"] = {n: asdict(p) for n, p in self._parameters.collect().items()}
        if _is_due(number, self._config.histograms_every):
            record["histograms"] = self._histograms()
        self.write(record)
        return outcome

    def write_header(self, *, num_samples: int, num_parameters: int) -> None:
        """What the records that follow are about; it has no step. num_samples: that are trained on."""
        header = {"kind": "header", "stage": self._kind, "num_samples": num_samples, "num_parameters": num_parameters}
        self.write(header | {"precision": self._trainee.precision.name})

    def write(self, record: dict[str, Any]) -> None:
        """Write a record with `kind`, and `step` but for headers, to both files."""
        if self._writer is not None and self._view is not None:
            self._writer.write(record)
            self._view.write(record)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """(3, H, W) in [0, 1] to TensorBoard."""
        if self._view is not None:
            self._view.image(tag, picture, step)

    def close(self) -> None:
        """Take the hooks off and close the files."""
        self._trainee.watch.detach()
        if self._writer is not None and self._view is not None:
            self._writer.close()
            self._view.close()

    def _clipped(self, grad_norm: float) -> float:
        limit = self._trainee.learning_rate_config.max_grad_norm
        return grad_norm if limit is None else min(grad_norm, limit)

    def _samples(self, batches: Sequence[EncodedBatch]) -> list[str]:
        """Ids of the samples that all processes really saw in this step, in the order of the data stream."""
        own = [item for batch in batches for item in zip(batch.positions.tolist(), batch.ids, strict=True)]
        return [name for _, name in sorted(self._trainee.processes.gather(own))]

    def _histograms(self) -> dict[str, Any]:
        """Weights and the gradients that the optimizer saw (after clipping), of the configured parameters."""
        patterns = self._config.histogram_parameters
        content = {}
        for name, parameter in self._trainee.parameters().items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                content[f"histogram_weight/{name}"] = asdict(histogram(whole(parameter, like=parameter)))
                if parameter.grad is not None:
                    content[f"histogram_gradient/{name}"] = asdict(histogram(whole(parameter.grad, like=parameter)))
        return content


def _by_quarter(sample_losses: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Mean loss of the samples in each quarter of t that has some; keys are the quarter's ends, `0.25-0.50`."""
    quarters: dict[int, list[float]] = {}
    for t, loss in sample_losses:
        quarters.setdefault(int(t * 4), []).append(loss)
    return {f"{q / 4:.2f}-{(q + 1) / 4:.2f}": sum(own) / len(own) for q, own in sorted(quarters.items())}


def _memory_gib(device: torch.device) -> float:
    """What this process holds in GiB: tensors on a GPU, else its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def _unscaled(statistics: dict[str, float | int], scale: float) -> dict[str, float | int]:
    """Statistics of a gradient without the gradient scaler's factor."""
    return {
        key: value / scale if key in ("norm", "mean", "std", "max_abs") else value for key, value in statistics.items()
    }


def _is_due(number: int, every: int) -> bool:
    """Whether 1-based step `number` is observed: the first and every `every`-th; never with 0."""
    return every > 0 and (number == 1 or number % every == 0)
