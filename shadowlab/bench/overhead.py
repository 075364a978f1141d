"""What watching costs: step times on an SDXL-shaped UNet, host reads inside a step, proof of identical weights.

All variants run in one process on one model, in interleaved rounds (see `shadowlab.bench.rounds`).
"""

import importlib
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch
from shadowlab.bench.host_reads import HostReads, count_host_reads
from shadowlab.bench.rounds import Rounds, Row, row_lines, timed
from shadowlab.bench.trial import Trial, narrowed_sdxl

BARE = "bare step"
CONTROL = "bare step again"
FULL = "Watch, all statistics every step"
BETWEEN = "Watch, boundary checks alone"
CADENCE = "Watch, default cadence"
UNNOTED = "Watch, a loop that notes nothing"
ANOMALY = "torch.autograd.set_detect_anomaly"
UNDERFLOW_OVERFLOW = "transformers DebugUnderflowOverflow"

_NUM_IDENTITY_STEPS = 3
_FAULTS = ("one NaN in the batch", "log of a negative value in the middle block")

Variant = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class TripRow:
    """From the call of `Watch.step` to its NonFiniteError, incident written."""

    fault: str
    steps: float
    """In bare steps timed before and after."""
    seconds: float
    verdict: str


@dataclass(frozen=True)
class OverheadReport:
    """What watching costs."""

    num_parameters: int
    batch: int
    size: int
    """Height and width of the latents."""
    num_rounds: int
    device: str
    num_threads: int
    torch: str
    cadence: int
    """Steps from one with statistics to the next."""
    rows: list[Row]
    trips: list[TripRow]
    host_reads: dict[str, HostReads]
    bit_identical: dict[str, bool]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


def measure_overhead(
    num_parameters: float = 80e6,
    batch: int = 4,
    size: int = 32,
    repeats: int = 11,
    on_row: Callable[[str], None] = lambda line: None,
    *,
    trips: int = 3,
    device: str = "cpu",
    unet: nn.Module | None = None,
) -> OverheadReport:
    """Measure everything; `on_row` receives a line of text as each part is done.

    Args:
        num_parameters: of SDXL's UNet without cross-attention, narrowed to about that.
        batch: samples. size: height and width of the latents.
        repeats: rounds; each runs every variant once.
        trips: times that each fault is set; 0 for no measurement of the time to a verdict.
        unet: takes the place of the narrowed SDXL; 9 input channels and a light embedding, as `load_unet` gives.
    """
    place = torch.device(device)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(0)
        trial = Trial(narrowed_sdxl(num_parameters) if unet is None else unet, batch, size, place)
        size_text = f"{trial.num_parameters / 1e6:.1f} M parameters"
        on_row(f"{size_text}, batch {batch}, {size} x {size} latents, float32, {place}, AdamW, clipping at 1.0")
        with tempfile.TemporaryDirectory() as folder:
            watches = {
                FULL: Watch(trial.unet, trial.optimizer, statistics_every=1, incidents=folder),
                BETWEEN: Watch(trial.unet, trial.optimizer, incidents=folder),
            }
            cadence = watches[BETWEEN]._every
            identical = {name: _is_identical(trial, watch) for name, watch in watches.items()}
            on_row(f"weights after {_NUM_IDENTITY_STEPS} steps bit-identical: {_yes_no(all(identical.values()))}")
            reads = {name: count_host_reads(trial, partial(trial.watched, watch, 1)) for name, watch in watches.items()}
            unnoted = watches[BETWEEN]
            reads[UNNOTED] = count_host_reads(trial, lambda: unnoted.step(trial.step, step_index=1))
            on_row(f"host reads by diagnostics: {_sources(reads)}")
            rows = _rows(trial, watches, cadence, repeats, on_row)
            trip_rows = [_trip(trial, watches[BETWEEN], fault, trips, on_row) for fault in _FAULTS if trips]
    return OverheadReport(
        num_parameters=trial.num_parameters,
        batch=batch,
        size=size,
        num_rounds=repeats,
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        num_threads=torch.get_num_threads(),
        torch=torch.__version__,
        cadence=cadence,
        rows=rows,
        trips=trip_rows,
        host_reads=reads,
        bit_identical=identical,
    )


# Step times


def _rows(
    trial: Trial, watches: dict[str, Watch], cadence: int, repeats: int, on_row: Callable[[str], None]
) -> list[Row]:
    calls: dict[str, Callable[[], Any]] = {
        BARE: trial.step,
        FULL: lambda: trial.watched(watches[FULL], 1),
        BETWEEN: lambda: trial.watched(watches[BETWEEN], 1),  # not due
        ANOMALY: trial.step,
        CONTROL: trial.step,
    }
    around: dict[str, Variant] = {ANOMALY: lambda: torch.autograd.set_detect_anomaly(True)}
    missing = {}
    try:
        debug_utils = importlib.import_module("transformers.debug_utils")
    except ImportError as error:
        missing[UNDERFLOW_OVERFLOW] = f"not installed (pip install transformers): {error}"
    else:
        calls[UNDERFLOW_OVERFLOW] = trial.step
        around[UNDERFLOW_OVERFLOW] = lambda: _underflow_overflow(debug_utils, trial.unet)
    times = Rounds(calls, repeats, trial.device, around=around, on_round=on_row)
    # A due step's surplus spread over the steps of a cadence.
    times.mix(CADENCE, {BETWEEN: 1 - 1 / cadence, FULL: 1 / cadence})
    notes = {
        CONTROL: "the noise of this measurement",
        FULL: "every leaf module's activations and gradients, measured and collected",
        BETWEEN: "a step without statistics, measured",
        CADENCE: f"the row above plus 1/{cadence} of a statistics step's surplus",
    }
    order = (BARE, CONTROL, FULL, BETWEEN, CADENCE, ANOMALY, UNDERFLOW_OVERFLOW)
    return [
        Row(name, note=missing[name]) if name in missing else times.row(name, BARE, notes.get(name, ""))
        for name in order
    ]


@contextmanager
def _underflow_overflow(debug_utils: Any, model: nn.Module) -> Iterator[None]:
    """transformers' hooks on `model`, and off again: it has no method for that."""
    before = [(module, set(module._forward_hooks)) for module in model.modules()]
    debug_utils.DebugUnderflowOverflow(model)
    try:
        yield
    finally:
        for module, keys in before:
            for key in set(module._forward_hooks) - keys:
                del module._forward_hooks[key]


# Trip to verdict


def _trip(trial: Trial, watch: Watch, fault: str, num_trips: int, on_row: Callable[[str], None]) -> TripRow:
    seconds, steps, verdict = [], [], ""

    def tripping() -> None:
        nonlocal verdict
        try:
            trial.watched(watch, 1)
        except NonFiniteError as error:
            found = error.verdict
            verdict = " ".join(str(part) for part in (found.phase, found.op, found.module or found.parameter) if part)
            verdict += f", samples {list(found.samples)}"
        else:
            raise AssertionError(f"{fault}: Watch let the step pass")

    for number in range(1, num_trips + 1):
        before = timed(trial.step, trial.device)[0]
        with _poisoned_batch(trial) if "batch" in fault else _poisoned_forward(trial):
            seconds.append(timed(tripping, trial.device)[0])
        steps.append(2 * seconds[-1] / (before + timed(trial.step, trial.device)[0]))
        on_row(f"{fault} {number}/{num_trips}: verdict in {seconds[-1]:.2f} s, {steps[-1]:.2f} steps: {verdict}")
    return TripRow(fault, statistics.median(steps), statistics.median(seconds), verdict)


@contextmanager
def _poisoned_batch(trial: Trial) -> Iterator[None]:
    clean = trial.batch["concatenated"]
    trial.batch["concatenated"] = clean.clone()
    trial.batch["concatenated"][1, 0, 0, 0] = math.nan
    try:
        yield
    finally:
        trial.batch["concatenated"] = clean


@contextmanager
def _poisoned_forward(trial: Trial) -> Iterator[None]:
    def poison(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        sign = torch.ones(len(output), 1, 1, 1, device=output.device)
        sign[1] = -1
        return (output.abs() * sign).log()

    with trial.unet.mid_block.resnets[0].register_forward_hook(poison):
        yield


# Identical weights


def _is_identical(trial: Trial, watch: Watch) -> bool:
    """Whether steps with and without `watch`, from the same weights and seed, end in the same weights and states."""
    start = [p.detach().clone() for p in trial.parameters]
    seed = torch.initial_seed()

    def run(step: Callable[[int], Any]) -> list[Tensor]:
        with torch.no_grad():
            for parameter, value in zip(trial.parameters, start, strict=True):
                parameter.copy_(value)
        trial.optimizer.state.clear()
        torch.manual_seed(seed)
        for index in range(_NUM_IDENTITY_STEPS):
            step(index)
        return trial.parameters

    bare = [p.detach().clone() for p in run(lambda index: trial.step())]
    moved = any(not torch.equal(a, b) for a, b in zip(bare, start, strict=True))
    watched = run(lambda index: trial.watched(watch, index))
    return moved and all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))


# Text


def format_table(report: OverheadReport) -> str:
    """The report for people, plain text."""
    lines = [
        f"{report.num_parameters / 1e6:.1f} M parameters, batch {report.batch}, {report.size} x {report.size} latents, "
        f"float32, {report.device}, {report.num_threads} threads, torch {report.torch}",
        f"medians of {report.num_rounds} interleaved rounds, as ratios to the bare step; quartiles next to them",
        "",
        *row_lines(report.rows),
    ]
    lines.append("")
    for trip in report.trips:
        lines.append(f"trip to verdict, {trip.fault}: {trip.steps:.2f} steps ({trip.seconds:.1f} s): {trip.verdict}")
    lines += ["", "host reads in a step, by part of it"]
    for name, reads in report.host_reads.items():
        lines.append(f"  {name}: own {_counts(reads.own)}; all {_counts(reads.watched)}; bare {_counts(reads.bare)}")
    lines.append(f"  own, where and how: {_sources(report.host_reads)}")
    for name, identical in report.bit_identical.items():
        lines.append(f"weights after {_NUM_IDENTITY_STEPS} steps bit-identical, {name}: {_yes_no(identical)}")
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{part} {number}" for part, number in counts.items()) or "none"


def _sources(reads: dict[str, HostReads]) -> str:
    found: dict[str, int] = {}
    for one in reads.values():
        found |= one.own_sources
    return ", ".join(f"{source} x {number}" for source, number in found.items()) or "none"


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
