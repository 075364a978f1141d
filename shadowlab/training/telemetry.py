"""Training steps under observation: metrics.jsonl first, then every sink with the same record."""

import fnmatch
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor

from diagnostics import NonFiniteError
from diagnostics.health import Finding, HealthWatch
from diagnostics.records import Header, Health, Incident, RecordWriter, TrainingStep, read_records
from diagnostics.statistics import ParameterStatistics, histogram, recorded_layers, recorded_parameters
from shadowlab.charts import Chart
from shadowlab.distributed import whole
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.runs import RunFolder
from shadowlab.settings import DiagnosticsConfig
from shadowlab.training.capture import capture_step
from shadowlab.training.step import StepOutcome, StepPlace, training_step
from shadowlab.training.trainee import Trainee

_INCIDENT_SECONDS = 3600.0  # a step that is looked into takes many times as long, and its evidence GiB
_MAX_WARNINGS = 5  # of one step in words; the record has all


class Sink(Protocol):
    """Where the records and pictures of a run go besides metrics.jsonl: a view that is written while it trains."""

    def remember(self, record: Mapping[str, Any]) -> None:
        """A record that an earlier process wrote; all of them come before the first `write`."""
        ...

    def write(self, record: Mapping[str, Any]) -> None:
        """A record, as metrics.jsonl has it."""
        ...

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """A picture: (3, H, W) in [0, 1]."""
        ...

    def close(self) -> None: ...


class Telemetry:
    """The observed training step of one stage.

    Args:
        kind: `overfit` or `train`; prefix of the scalars.
        resumed_at: steps done before; records of later steps in existing files are dropped.
        warn: called with what the health rules find while the run is under way, once for each rule and layer.
        open_sinks: called once, where records are written and metrics.jsonl is sound; closed by `close`.

    Every rank measures (hooks must not differ between ranks); only the first writes.

    Attributes:
        live: what a live view shows of the last step next to loss and gradient norm; the headroom is that of the last
            step with statistics.
    """

    def __init__(
        self,
        run: RunFolder,
        trainee: Trainee,
        config: DiagnosticsConfig,
        *,
        kind: str,
        resumed_at: int = 0,
        warn: Callable[[str], None] | None = None,
        open_sinks: Callable[[], Sequence[Sink]] = tuple,
    ) -> None:
        self._run, self._trainee, self._config, self._kind = run, trainee, config, kind
        trainee.watch.incidents = run.path / "incidents"
        trainee.watch.on_trip = partial(trainee.processes.expect_delay, _INCIDENT_SECONDS)
        self._parameters = ParameterStatistics(trainee.unet)
        self.live: dict[str, float | str] = {}
        self._writer: RecordWriter | None = None
        self._sinks: Sequence[Sink] = ()
        self._health, self._warn = HealthWatch(kind), warn
        if trainee.processes.is_main:
            self._writer = RecordWriter(run.metrics, keep_until_step=resumed_at)
            self._sinks = open_sinks()
            if resumed_at > 0:
                self._remember()

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
        parameters = self._parameters if due else None
        try:
            outcome = training_step(self._trainee, batches, place, parameter_statistics=parameters)
        except NonFiniteError as error:
            self._record_incident(error, place)
            raise
        seen = self._seen(batches, outcome)
        record: TrainingStep = {
            "kind": self._kind,
            "step": number,
            "loss": outcome.loss,
            "grad_norm": outcome.grad_norm,
            "loss_by_t": _by_quarter([(t, loss) for _, _, (t, loss) in seen]),
            "learning_rate": outcome.learning_rate,
            "step_seconds": time.perf_counter() - started,
            "data_wait_seconds": waited_seconds,
            "samples": [name for _, name, _ in seen],
            "skipped": outcome.skipped,
            "num_skipped": watch.num_skipped,
            "memory_gib": _memory_gib(self._trainee.device),
        }
        if not outcome.skipped:  # nothing was clipped, nor applied
            record["grad_norm_clipped"] = self._clipped(outcome.grad_norm)
        if due and scaler is not None:
            record["loss_scale"] = scale
        if began is not None:
            record["data_wait_share"] = waited_seconds / (time.perf_counter() - began)
        if parameters is not None:
            record["layers"] = recorded_layers(watch.layers, scale)
            record["parameters"] = recorded_parameters(parameters.collect())
        if _is_due(number, self._config.histograms_every):
            record["histograms"] = self._histograms()
        self._publish(record)
        return outcome

    def write_header(self, *, num_samples: int, num_parameters: int, charts: Sequence[Chart]) -> None:
        """What the records that follow are about; it has no step.

        Args:
            num_samples: that are trained on.
            charts: what the views draw of the evaluations, in this order.
        """
        header: Header = {
            "kind": "header",
            "stage": self._kind,
            "num_samples": num_samples,
            "num_parameters": num_parameters,
            "precision": self._trainee.precision.name,
            "device": _device_name(self._trainee.device),
            "charts": [chart.to_json() for chart in charts],
        }
        self.write(header)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record with `kind`, and `step` but for headers, to metrics.jsonl and to every sink."""
        if self._writer is not None:
            self._writer.write(record)
        for sink in self._sinks:
            sink.write(record)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Show a picture, (3, H, W) in [0, 1], in every sink."""
        for sink in self._sinks:
            sink.image(tag, picture, step)

    def close(self) -> None:
        """Take the hooks off and close the files."""
        self._trainee.watch.detach()
        if self._writer is not None:
            self._writer.close()
        for sink in self._sinks:
            sink.close()

    def _publish(self, record: TrainingStep) -> None:
        """To the files, to the live view, and to the health rules, whose findings are records of their own."""
        self.write(record)
        self._show(record)
        if self._writer is not None:
            self._warn_of(record["step"], self._health.add(record))

    def _show(self, record: TrainingStep) -> None:
        self.live |= {"lr": record["learning_rate"], "memory": f"{record['memory_gib']:.2f} GiB"}
        if record["num_skipped"]:
            self.live["skipped"] = record["num_skipped"]
        lowest = lowest_headroom(record.get("layers", {}))
        if lowest is not None:
            layer, bits = lowest
            self.live["lowest headroom"] = f"{bits:.1f} bits in {layer} at step {record['step']}"

    def _remember(self) -> None:
        """The records that a resumed run goes on from."""
        for record in read_records(self._run.metrics):
            self._health.remember(record)
            for sink in self._sinks:
                sink.remember(record)

    def _warn_of(self, step: int, findings: Sequence[Finding]) -> None:
        if not findings:
            return
        self.write(Health(kind="health", step=step, findings=[finding.to_json() for finding in findings]))
        if self._warn is None:
            return
        for finding in findings[:_MAX_WARNINGS]:
            self._warn(f"step {step}: {finding}")
        if len(findings) > _MAX_WARNINGS:
            self._warn(f"step {step}: and {len(findings) - _MAX_WARNINGS} more: shadowlab health {self._run.path}")

    def _record_incident(self, error: NonFiniteError, place: StepPlace) -> None:
        """Keep the state before the step, record the verdict, and note in the error where both are."""
        self._trainee.processes.at("writing the incident", patience_seconds=_INCIDENT_SECONDS)
        kept = None
        if error.incident is not None:  # on the rank that wrote it
            kept = capture_step(error.incident, self._run, self._trainee, place, kind=self._kind)
            hint = f"state before the step: {kept}\nwhat would have helped: shadowlab why {error.incident}"
            error.args = (f"{error}\n{hint}",)
        self._trainee.processes.wait()  # every rank comes here; none may end the run while another writes
        self.write(Incident(kind="incident", step=place.step + 1, verdict=error.verdict.to_json(), state=kept))

    def _clipped(self, grad_norm: float) -> float:
        limit = self._trainee.learning_rate_config.max_grad_norm
        return grad_norm if limit is None else min(grad_norm, limit)

    def _seen(
        self, batches: Sequence[EncodedBatch], outcome: StepOutcome
    ) -> list[tuple[int, str, tuple[float, float]]]:
        """Position, id, and (t, loss) of the samples that all processes really saw in this step, in the order of the
        data stream."""
        positions = [position for batch in batches for position in batch.positions.tolist()]
        names = [name for batch in batches for name in batch.ids]
        own = list(zip(positions, names, outcome.sample_losses, strict=True))
        return sorted(self._trainee.processes.gather(own))

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


def lowest_headroom(layers: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[str, float] | None:
    """Of a record's layers, the one whose output comes nearest to its dtype's largest number, with the distance in
    bits; NaN before any number. None where no layer was measured."""
    found = [(name, parts["activation"]["headroom_bits"]) for name, parts in layers.items() if "activation" in parts]
    return min(found, key=lambda one: -math.inf if math.isnan(one[1]) else one[1], default=None)


def _by_quarter(sample_losses: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Mean loss of the samples in each quarter of t that has some; keys are the quarter's ends, `0.25-0.50`."""
    quarters: dict[int, list[float]] = {}
    for t, loss in sample_losses:
        quarters.setdefault(int(t * 4), []).append(loss)
    return {f"{q / 4:.2f}-{(q + 1) / 4:.2f}": sum(own) / len(own) for q, own in sorted(quarters.items())}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _memory_gib(device: torch.device) -> float:
    """What this process holds in GiB: tensors on a GPU, else its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def _is_due(number: int, every: int) -> bool:
    """Whether 1-based step `number` is observed: the first and every `every`-th; never with 0."""
    return every > 0 and (number == 1 or number % every == 0)
