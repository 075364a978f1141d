"""Training steps under observation: metrics.jsonl first, then every sink with the same record."""

import fnmatch
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from diagnostics import NonFiniteError, Verdict
from diagnostics.health import Finding, HealthWatch
from diagnostics.records import Header, Health, Incident, RecordWriter, TrainingStep, read_records
from diagnostics.statistics import ParameterStatistics, histogram, recorded_layers, recorded_parameters
from shadowlab.charts import Chart, Metric
from shadowlab.distributed import whole
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.runs import Remedy, RunFolder, write_remedy
from shadowlab.settings import DiagnosticsConfig
from shadowlab.training.capture import capture_step
from shadowlab.training.sinks import Sink, Sinks
from shadowlab.training.step import StepNotes, StepOutcome, StepPlace, training_step
from shadowlab.training.trainee import Trainee
from shadowlab.training.upkeep import Upkeep

_INCIDENT_SECONDS = 3600.0  # a step that is looked into takes many times as long, and its evidence GiB
_MAX_WARNINGS = 5  # of one step in words; the record has all


class Telemetry:
    """The observed training step of one stage.

    Args:
        kind: `overfit` or `train`; prefix of the scalars.
        resumed_at: steps done before; records of later steps in existing files are dropped.
        warn: called with what the health rules find while the run is under way, once for each rule and layer.
        open_sinks: called once, where records are written and metrics.jsonl is sound; closed by `close`.

    Every rank measures (hooks must not differ between ranks); only the first writes.

    Attributes:
        recorded: kinds of the records of step `resumed_at` that are there; empty on every rank but the first.
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
        self._resumed_at = resumed_at
        trainee.watch.incidents = run.path / "incidents"
        trainee.watch.on_trip = partial(trainee.processes.expect_delay, _INCIDENT_SECONDS)
        self._parameters, self._upkeep = ParameterStatistics(trainee.unet), Upkeep(trainee)
        self.live: dict[str, float | str] = {}
        self.recorded: set[str] = set()
        self._writer: RecordWriter | None = None
        again = f"shadowlab tensorboard {run.path} --rebuild draws all that metrics.jsonl has"
        self._sinks = Sinks((), warn, again)
        self._health, self._warn = HealthWatch(kind), warn
        if trainee.processes.is_main:
            self._writer = RecordWriter(run.metrics, keep_until_step=resumed_at)
            self._sinks = Sinks(open_sinks(), warn, again, self.write)
            if resumed_at > 0:
                self._remember(resumed_at)

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
        notes = StepNotes()
        if due:
            self._upkeep.begin()
        try:
            outcome = training_step(self._trainee, batches, place, parameter_statistics=parameters, notes=notes)
        except NonFiniteError as error:
            self._upkeep.drop()
            self._record_incident(error, batches, place, notes)
            raise
        record = self._record(number, batches, notes)
        record["step_seconds"], record["data_wait_seconds"] = time.perf_counter() - started, waited_seconds
        if not outcome.skipped:  # nothing was clipped, nor applied
            record["grad_norm_clipped"] = self._clipped(outcome.grad_norm)
        if due and scaler is not None:
            record["loss_scale"] = scale
        if began is not None:
            record["data_wait_share"] = waited_seconds / (time.perf_counter() - began)
        if parameters is not None:
            upkeep = self._upkeep.end(batches, skipped=outcome.skipped)
            record = record | upkeep
            record["layers"] = recorded_layers(watch.layers, scale)
            record["parameters"] = recorded_parameters(parameters.collect())
        if _is_due(number, self._config.histograms_every):
            record["histograms"] = self._histograms()
        self._publish(record)
        return outcome

    def _record(self, number: int, batches: Sequence[EncodedBatch], notes: StepNotes) -> TrainingStep:
        """What every step has read on the host; every process calls."""
        seen, update = self._seen(batches, notes), notes.update
        record: TrainingStep = {"kind": self._kind, "step": number}
        if update is not None:
            record |= {"loss": update.loss, "grad_norm": update.grad_norm}
            record["loss_by_t"] = _by_quarter([own for _, _, own in seen if own is not None])
            record |= {"learning_rate": update.learning_rate, "skipped": update.skipped}
        record["samples"] = [name for _, name, _ in seen]
        record["num_skipped"] = self._trainee.watch.num_skipped
        record["memory_gib"] = _memory_gib(self._trainee.device)
        return record

    def write_header(
        self,
        *,
        num_samples: int,
        num_parameters: int,
        charts: Sequence[Chart],
        metrics: Sequence[Metric] = (),
        changed: Sequence[str] = (),
        augmentation: str = "",
        split: Mapping[str, Any] | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        """What the records that follow are about; it has no step.

        Args:
            num_samples: that are trained on.
            charts: what the views draw of the evaluations, in this order.
            metrics: what the numbers of the evaluations mean.
            changed: of a run that goes on, what is configured otherwise than before, in words.
            augmentation: how samples are changed, in words.
            split: who trains and who is held out.
            start: the run whose weights it started from.
        """
        header: Header = {
            "kind": "header",
            "stage": self._kind,
            "num_samples": num_samples,
            "num_parameters": num_parameters,
            "precision": self._trainee.precision.name,
            "device": _device_name(self._trainee.device),
            "charts": [chart.to_json() for chart in charts],
            "metrics": [metric.to_json() for metric in metrics],
            "command": sys.argv[1:],
            "schedule": self._schedule(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if self._resumed_at > 0:
            header["resumed_at"] = self._resumed_at
        if changed:
            header["changed"] = list(changed)
        if augmentation:
            header["augmentation"] = augmentation
        if split is not None:
            header["split"] = dict(split)
        if start is not None:
            header["start"] = dict(start)
        self.write(header)
        self._health.remember(header)

    def _schedule(self) -> dict[str, Any]:
        config = self._trainee.learning_rate_config
        named = config.model_dump(include={"learning_rate", "warmup_steps", "schedule"})
        return named | {"max_steps": self._trainee.max_steps}

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record with `kind`, and `step` but for headers, to metrics.jsonl and to every sink."""
        if self._writer is not None:
            self._writer.write(record)
        self._sinks.write(record)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Show a picture, (3, H, W) in [0, 1], in every sink."""
        self._sinks.image(tag, picture, step)

    def close(self) -> None:
        """Take the hooks off and close the files."""
        self._trainee.watch.detach()
        self._upkeep.drop()
        self._sinks.close()  # while what they lose can be recorded
        if self._writer is not None:
            self._writer.close()

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

    def _remember(self, resumed_at: int) -> None:
        """The records that a resumed run goes on from."""
        for record in read_records(self._run.metrics):
            if record.get("step") == resumed_at:
                self.recorded.add(str(record.get("kind")))
            self._health.remember(record)
            self._sinks.remember(record)

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

    def _record_incident(
        self, error: NonFiniteError, batches: Sequence[EncodedBatch], place: StepPlace, notes: StepNotes
    ) -> None:
        """Keep the state before the step, record its numbers and the verdict, and note in the error where both are."""
        self._trainee.processes.at("writing the incident", patience_seconds=_INCIDENT_SECONDS)
        kept = None
        if error.incident is not None:  # on the rank that wrote it
            kept = capture_step(error.incident, self._run, self._trainee, place, kind=self._kind)
            remedy = _remedy(error.incident, error.verdict, self._run)
            hint = f"state before the step: {kept}\nwhat would have helped: shadowlab why {error.incident}"
            hint = f"to fix it: {remedy.command}\n{hint}" if remedy.command else hint
            error.args = (f"{error}\n{hint}",)
        self._trainee.processes.wait()  # every rank comes here; none may end the run while another writes
        self.write(self._tripped(batches, place, notes))
        self.write(Incident(kind="incident", step=place.step + 1, verdict=error.verdict.to_json(), state=kept))

    def _tripped(self, batches: Sequence[EncodedBatch], place: StepPlace, notes: StepNotes) -> TrainingStep:
        """The record of a step that made no update. Its layers are those of the repetition."""
        scaler, watch = self._trainee.scaler, self._trainee.watch
        scale = 1.0 if scaler is None else scaler.get_scale()  # put back by the watch
        record = self._record(place.step + 1, batches, notes)
        record["tripped"], record["skipped"] = True, False
        if scaler is not None:
            record["loss_scale"] = scale
        if watch.layers:
            record["layers"] = recorded_layers(watch.layers, scale)
        if notes.gradient_norms:
            norms = zip(notes.gradient_norms, torch.stack([*notes.gradient_norms.values()]).tolist(), strict=True)
            record["parameters"] = {name: {"gradient_norm": norm, "update_ratio": None} for name, norm in norms}
        return record

    def _clipped(self, grad_norm: float) -> float:
        limit = self._trainee.learning_rate_config.max_grad_norm
        return grad_norm if limit is None else min(grad_norm, limit)

    def _seen(
        self, batches: Sequence[EncodedBatch], notes: StepNotes
    ) -> list[tuple[int, str, tuple[float, float] | None]]:
        """Position, id, and (t, loss) of the samples that all processes really saw in this step, in the order of the
        data stream; None for those that came to no loss."""
        positions = [position for batch in batches for position in batch.positions.tolist()]
        names = [name for batch in batches for name in batch.ids]
        losses = notes.sample_losses or (None,) * len(names)
        own = list(zip(positions, names, losses, strict=True))
        return sorted(self._trainee.processes.gather(own), key=lambda one: one[0])

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


def _remedy(incident: Path, verdict: Verdict, run: RunFolder) -> Remedy:
    """Written to the incident; an empty one where the disk or the run's files refuse: the finding must come through."""
    try:
        return write_remedy(incident, verdict, run)
    except (OSError, UserError):
        return Remedy()


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
