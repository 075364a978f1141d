"""What the steps of a watched loop showed, written to metrics.jsonl as a run of the harness writes it."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from diagnostics.errors import NonFiniteError
from diagnostics.files import read_text
from diagnostics.health import Finding, HealthWatch
from diagnostics.modules import unwrapped
from diagnostics.ranks import rank
from diagnostics.records import Header, Health, Incident, RecordWriter, TrainingStep, append_record, read_records
from diagnostics.statistics import ParameterStatistics, TensorStatistics, recorded_layers, recorded_parameters
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.observation import Observation
from diagnostics.watching.snapshot import bare

_NAME = "metrics.jsonl"
_MAX_LINES = 5  # of one step's findings on the console; the record has all
_CLIPPED = 1.001  # times the norm after clipping: below it is rounding
_LOG = logging.getLogger("diagnostics.watch")  # a loop of somebody else has no console of ours

Layers = Mapping[str, Mapping[str, TensorStatistics]]


class Journal:
    """One record a step; what the live health rules find in them is a record, a line of the log and in `findings`.

    Of several processes every one measures, the first writes.
    """

    findings: list[Finding]
    """What the rules have found so far, each thing once."""

    def __init__(self, folder: Path, guarded: Guarded) -> None:
        """Raises:
        OSError: the folder cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.findings = []
        self._path, self._guarded = folder / _NAME, guarded
        self._health = HealthWatch()
        self._is_open = self._is_lost = self._has_moved = self._is_measured = False
        self._started = 0.0
        self._rate: float | None = None
        self._parameters: list[ParameterStatistics] = []

    # A step

    def begin(self, index: int, *, is_due: bool) -> None:
        """The step with this 0-based index begins; `is_due`: it is measured in every layer and parameter."""
        self._ready(index)  # before a first step's incident is there, which is none of an earlier run's
        models = self._guarded.models if is_due else []
        self._parameters = [ParameterStatistics(unwrapped(model)) for model in models]
        self._has_moved = self._is_measured = False
        self._rate = _learning_rate(self._guarded.optimizers)
        self._started = time.perf_counter()

    def before_update(self) -> None:
        """The optimizers are about to move. Reads nothing on the host."""
        if self._has_moved:
            return
        self._has_moved = True
        self._rate = _learning_rate(self._guarded.optimizers)
        for parameters in self._parameters:
            parameters.before_step()

    def after_update(self) -> None:
        """All of them have moved. Reads nothing on the host."""
        if not self._is_measured:
            for parameters in self._parameters:
                parameters.after_step()
        self._is_measured = True

    def end(self, index: int, seen: Observation, num_skipped: int, layers: Layers, scale: float | None) -> None:
        """The step with this 0-based index has ended well.

        Args:
            num_skipped: by a gradient scaler so far. layers: of this step, empty where it was not due. scale: the
                gradient scaler's before the step, in steps that are due; None without one.
        """
        seconds = time.perf_counter() - self._started
        record: TrainingStep = {"kind": "train", "step": index + 1}
        if seen.loss is not None:
            record["loss"] = seen.loss
        if seen.grad_norm is not None:
            record["grad_norm"] = seen.grad_norm
        if self._rate is not None:
            record["learning_rate"] = self._rate
        record |= {"skipped": seen.is_skipped, "num_skipped": num_skipped, "step_seconds": seconds}
        memory = _memory_gib(self._guarded)
        if memory is not None:
            record["memory_gib"] = memory
        if layers:
            record["layers"] = recorded_layers(layers, scale or 1.0)
            record |= self._measured(seen.grad_norm)
            if scale is not None:
                record["loss_scale"] = scale
        self._publish(record)

    def _measured(self, grad_norm: float | None) -> TrainingStep:
        """Of the parameters: as they arrive here, gradients are clipped."""
        found: dict[str, dict[str, float | None]] = {}
        for parameters in self._parameters:
            found |= recorded_parameters(parameters.collect())
        norms = [norm for one in found.values() if (norm := one["gradient_norm"]) is not None]
        clipped = math.hypot(*norms)
        if grad_norm is None or not 0 < clipped * _CLIPPED < grad_norm < math.inf:
            return {"parameters": found}
        for one in found.values():
            norm = one["gradient_norm"]
            one["gradient_norm"] = None if norm is None else norm * (grad_norm / clipped)
        return {"parameters": found, "grad_norm_clipped": clipped}

    def trip(self, index: int, error: NonFiniteError, layers: Layers, scale: float) -> None:
        """The step with this 0-based index met a value that is not finite; `layers` are those of its repetition."""
        record: TrainingStep = {"kind": "train", "step": index + 1, "tripped": True, "skipped": False}
        if self._rate is not None:
            record["learning_rate"] = self._rate
        if layers:
            record["layers"] = recorded_layers(layers, scale)
        self._write(record)  # no rule is asked: the verdict says it
        self._write(Incident(kind="incident", step=index + 1, verdict=error.verdict.to_json(), state=None))

    # Records

    def _publish(self, record: TrainingStep) -> None:
        self._write(record)
        if rank() == 0:
            self._report(record["step"], self._health.add(record))

    def _ready(self, index: int) -> None:
        if not self._is_open and rank() == 0:
            self._open(index)

    def _open(self, index: int) -> None:
        """A loop that begins with a later step goes on from the records that are there; one that begins anew does not
        write into them."""
        self._is_open = True
        try:
            if index == 0:
                self._set_aside()
            RecordWriter(self._path, keep_until_step=index).close()  # drops a line that a kill cut short
            for record in read_records(self._path):
                self._health.remember(record)
        except (OSError, ValueError) as error:
            self._lose(error)
        self._write(self._header(index))

    def _set_aside(self) -> None:
        """Records, and incidents next to them, of an earlier run go to a folder of their own, which is a run, too."""
        if not self._path.exists():
            return
        number = 1
        while (earlier := self._path.parent / f"earlier-{number}").exists():
            number += 1
        earlier.mkdir()
        self._path.rename(earlier / self._path.name)
        incidents = self._path.parent / "incidents"
        if incidents.is_dir():
            incidents.rename(earlier / incidents.name)
        _LOG.warning(
            "%s has the records of an earlier run: they are in %s now; a loop that goes on from a checkpoint gives "
            "`step_index=` of each step to the watch",
            self._path,
            earlier,
        )

    def _header(self, index: int) -> Header:
        header: Header = {
            "kind": "header",
            "stage": "train",
            "num_parameters": sum(p.numel() for p in self._guarded.parameters),
            "device": _device_name(self._guarded),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if index > 0:
            header["resumed_at"] = index
        return header

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._is_lost or rank() != 0:
            return
        try:
            append_record(self._path, record)
        except OSError as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """A run does not end because it cannot be written down."""
        self._is_lost = True
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        _LOG.error("%s: no more records are written (%s); the watch goes on", self._path, reason)

    def report(self, index: int, found: list[Finding]) -> None:
        """Contracts were broken in the step with this 0-based index."""
        self._ready(index)
        self._report(index + 1, found)

    def _report(self, step: int, found: list[Finding]) -> None:
        if not found:
            return
        self.findings += found
        self._write(Health(kind="health", step=step, findings=[finding.to_json() for finding in found]))
        log_findings(step, found, f": shadowlab health {self._path.parent}")


def log_findings(step: int, found: list[Finding], where: str = "") -> None:
    """On the logger `diagnostics.watch`: an alarm as an error, a warning as one. where: to read those that are many."""
    for finding in found[:_MAX_LINES]:
        level = logging.ERROR if finding.severity == "alarm" else logging.WARNING
        _LOG.log(level, "step %d: %s: %s", step, finding.severity, finding)
    if len(found) > _MAX_LINES:
        _LOG.warning("step %d: and %d more%s", step, len(found) - _MAX_LINES, where)


def _learning_rate(optimizers: Iterable[Any]) -> float | None:
    """Of the first parameter group; None where it is on an accelerator, or there is none."""
    for optimizer in optimizers:
        groups = getattr(bare(optimizer), "param_groups", None) or [{}]
        rate = groups[0].get("lr")
        if isinstance(rate, torch.Tensor) and rate.device.type == "cpu" and rate.numel() == 1:
            rate = rate.item()
        return float(rate) if isinstance(rate, int | float) else None
    return None


def _device(guarded: Guarded) -> torch.device:
    return guarded.parameters[0].device if guarded.parameters else torch.device("cpu")


def _device_name(guarded: Guarded) -> str:
    device = _device(guarded)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _memory_gib(guarded: Guarded) -> float | None:
    """Tensors on a CUDA device, else resident memory; None where the system does not say it."""
    device = _device(guarded)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**30
    if not sys.platform.startswith("linux"):
        return None
    resident = read_text("/proc/self/statm").split()[1]
    return int(resident) * os.sysconf("SC_PAGE_SIZE") / 2**30
