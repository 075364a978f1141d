"""What watching costs: step times on an SDXL-shaped UNet, host reads inside a step, proof of identical weights.

All variants run in one process on one model, each once a round, in an order that rotates; a variant's figure is the
median of its per-round ratios to the bare step, so that a load which drifts or comes in bursts cancels out. Each
timed step follows an untimed one of its kind: a watch that finds optimizer states written by others looks at them
all, which in training happens once.
"""

import importlib
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import diagnostics
from diagnostics import NonFiniteError, Watch
from shadowlab.light import EMBEDDING_DIM
from shadowlab.unet import (
    add_embedding_input,
    architecture_config,
    predict_velocity,
    remove_cross_attention,
    widen_conv_in,
)

BARE = "bare step"
CONTROL = "bare step again"
FULL = "Watch, all statistics every step"
BETWEEN = "Watch, boundary checks alone"
CADENCE = "Watch, default cadence"
UNNOTED = "Watch, a loop that notes nothing"
ANOMALY = "torch.autograd.set_detect_anomaly"
UNDERFLOW_OVERFLOW = "transformers DebugUnderflowOverflow"

_IN_CHANNELS = 9
_SMALLEST_WIDTH = 8
_NUM_IDENTITY_STEPS = 3
_FAULTS = ("one NaN in the batch", "log of a negative value in the middle block")
_OWN = os.path.dirname(diagnostics.__file__) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep

Variant = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class OverheadRow:
    """One variant. ratio: median over the rounds of its time to the bare step's; low and high: their quartiles.

    seconds: median step. cpu_ratio: the same of processor time over all threads, which other processes disturb less;
    None on an accelerator. All are None where the variant could not run; `note` says why.
    """

    name: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    seconds: float | None = None
    cpu_ratio: float | None = None
    note: str = ""


@dataclass(frozen=True)
class TripRow:
    """From the call of `Watch.step` to its NonFiniteError, incident written; in bare steps timed before and after."""

    fault: str
    steps: float
    seconds: float
    verdict: str


@dataclass(frozen=True)
class HostReads:
    """Values read on the host in one step, by part of the step; `own` are those that `diagnostics` asked for.

    On the CPU AdamW reads its step counters, which lie on the CPU on every machine: no device waits for them.
    """

    bare: dict[str, int]
    watched: dict[str, int]
    own: dict[str, int]
    own_sources: dict[str, int] = field(default_factory=dict)

    @property
    def num_own_before_optimizer(self) -> int:
        return sum(self.own.get(part, 0) for part in ("before", "forward", "backward", "clip", "loss read"))


@dataclass(frozen=True)
class OverheadReport:
    num_parameters: int
    batch: int
    size: int
    num_rounds: int
    device: str
    num_threads: int
    torch: str
    cadence: int
    rows: list[OverheadRow]
    trips: list[TripRow]
    host_reads: dict[str, HostReads]
    bit_identical: dict[str, bool]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def row(self, name: str) -> OverheadRow:
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
        trial = _Trial(narrowed_sdxl(num_parameters) if unet is None else unet, batch, size, place)
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
            reads = {name: _host_reads(trial, partial(trial.watched, watch, 1)) for name, watch in watches.items()}
            unnoted = watches[BETWEEN]
            reads[UNNOTED] = _host_reads(trial, lambda: unnoted.step(trial.step, step_index=1))
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


def narrowed_sdxl(num_parameters: float) -> UNet2DConditionModel:
    """SDXL's UNet as this project trains it, every width divided by the same number. Depth and heads' width stay."""
    full = 2.02e9
    config = architecture_config("sdxl")
    step = 32 if num_parameters > 2e7 else _SMALLEST_WIDTH
    width = max(_SMALLEST_WIDTH, step * round(320 * math.sqrt(num_parameters / full) / step))
    widths = [width, 2 * width, 4 * width]
    config |= {
        "block_out_channels": widths,
        "attention_head_dim": [max(1, channels // 64) for channels in widths],  # numbers of heads, by diffusers' habit
        "norm_num_groups": math.gcd(32, width),
        "cross_attention_dim": _SMALLEST_WIDTH,  # removed below
        "addition_time_embed_dim": _SMALLEST_WIDTH,
        "projection_class_embeddings_input_dim": 7 * _SMALLEST_WIDTH,
    }
    unet = UNet2DConditionModel.from_config(config)
    remove_cross_attention(unet)
    add_embedding_input(unet, EMBEDDING_DIM)
    widen_conv_in(unet, _IN_CHANNELS, "zero")
    return unet.train()


class _Trial:
    """One model, one optimizer, one batch; `step` is what a training loop does with them."""

    def __init__(self, unet: Any, batch: int, size: int, device: torch.device) -> None:
        self.unet, self.device = unet.to(device), device
        self.parameters = list(self.unet.parameters())
        self.num_parameters = sum(p.numel() for p in self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5)
        self.batch = {
            "data": torch.randn(batch, 4, size, size, device=device),
            "concatenated": torch.randn(batch, 5, size, size, device=device),
            "embedding": torch.randn(batch, EMBEDDING_DIM, device=device),
        }
        self.part = "before"  # of the step that runs

    def step(self, noted_by: Watch | None = None) -> float:
        """Reads loss and gradient norm once, before the optimizer moves, as a loop that checks them does.

        noted_by: gets them, as in this project's training step.
        """
        self.part = "forward"
        self.optimizer.zero_grad()
        data = self.batch["data"]
        noise, t = torch.randn_like(data), torch.rand(len(data), device=self.device)
        x_t = t[:, None, None, None] * data + (1 - t[:, None, None, None]) * noise
        velocity = predict_velocity(self.unet, x_t, t, self.batch["concatenated"], self.batch["embedding"])
        loss = (velocity - (data - noise)).square().mean()
        self.part = "backward"
        loss.backward()
        self.part = "clip"
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.part = "loss read"
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if noted_by is not None:
            noted_by.note(loss=loss_value, grad_norm=norm_value)
        self.part = "optimizer"
        self.optimizer.step()
        self.part = "after"
        return loss_value

    def watched(self, watch: Watch, step_index: int) -> float:
        return watch.step(lambda: self.step(watch), batch=self.batch, step_index=step_index)

    def timed(self, step: Callable[[], Any]) -> tuple[float, float]:
        """Wall and processor seconds of a call."""
        self.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        self.synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# Step times


def _rows(
    trial: _Trial, watches: dict[str, Watch], cadence: int, repeats: int, on_row: Callable[[str], None]
) -> list[OverheadRow]:
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
    names = list(calls)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeats):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            with around.get(name, nullcontext)():
                calls[name]()
                seconds = trial.timed(calls[name])
            wall[name].append(seconds[0])
            cpu[name].append(seconds[1])
        ratios = ", ".join(f"{name} {wall[name][-1] / wall[BARE][-1]:.3f}" for name in names if name != BARE)
        on_row(f"round {number + 1}/{repeats}: {BARE} {wall[BARE][-1]:.2f} s; {ratios}")
    for times in (wall, cpu):  # a due step's surplus spread over the steps of a cadence
        pairs = zip(times[BETWEEN], times[FULL], strict=True)
        times[CADENCE] = [between + (due - between) / cadence for between, due in pairs]
    is_cpu = trial.device.type == "cpu"
    notes = {
        CONTROL: "the noise of this measurement",
        FULL: "every leaf module's activations and gradients, measured and collected",
        BETWEEN: "a step without statistics, measured",
        CADENCE: f"the row above plus 1/{cadence} of a statistics step's surplus",
    }
    order = (BARE, CONTROL, FULL, BETWEEN, CADENCE, ANOMALY, UNDERFLOW_OVERFLOW)
    return [
        OverheadRow(name, note=missing[name])
        if name in missing
        else _row(name, wall, cpu if is_cpu else None, notes.get(name, ""))
        for name in order
    ]


def _row(name: str, wall: dict[str, list[float]], cpu: dict[str, list[float]] | None, note: str) -> OverheadRow:
    ratios = _ratios(wall, name)
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    cpu_ratio = None if cpu is None else statistics.median(_ratios(cpu, name))
    return OverheadRow(name, statistics.median(ratios), low, high, statistics.median(wall[name]), cpu_ratio, note)


def _ratios(times: dict[str, list[float]], name: str) -> list[float]:
    return [seconds / bare for seconds, bare in zip(times[name], times[BARE], strict=True)]


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


def _trip(trial: _Trial, watch: Watch, fault: str, num_trips: int, on_row: Callable[[str], None]) -> TripRow:
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
        before = trial.timed(trial.step)[0]
        with _poisoned_batch(trial) if "batch" in fault else _poisoned_forward(trial):
            seconds.append(trial.timed(tripping)[0])
        steps.append(2 * seconds[-1] / (before + trial.timed(trial.step)[0]))
        on_row(f"{fault} {number}/{num_trips}: verdict in {seconds[-1]:.2f} s, {steps[-1]:.2f} steps: {verdict}")
    return TripRow(fault, statistics.median(steps), statistics.median(seconds), verdict)


@contextmanager
def _poisoned_batch(trial: _Trial) -> Iterator[None]:
    clean = trial.batch["concatenated"]
    trial.batch["concatenated"] = clean.clone()
    trial.batch["concatenated"][1, 0, 0, 0] = math.nan
    try:
        yield
    finally:
        trial.batch["concatenated"] = clean


@contextmanager
def _poisoned_forward(trial: _Trial) -> Iterator[None]:
    def poison(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        sign = torch.ones(len(output), 1, 1, 1, device=output.device)
        sign[1] = -1
        return (output.abs() * sign).log()

    with trial.unet.mid_block.resnets[0].register_forward_hook(poison):
        yield


# Host reads


class _ReadCounter(TorchDispatchMode):
    """Counts values that the host reads, by part of the step, and who asked for them.

    `tolist` and `numpy` of a CPU tensor dispatch nothing, so the methods themselves are counted.
    """

    _METHODS = ("tolist", "numpy", "__array__")

    def __init__(self, trial: _Trial) -> None:
        super().__init__()
        self._trial = trial
        self.counts: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        self.own_sources: Counter[str] = Counter()

    def __enter__(self) -> "_ReadCounter":
        self._originals = {name: getattr(Tensor, name) for name in self._METHODS}
        for name, original in self._originals.items():
            setattr(Tensor, name, self._counting(original))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        for name, original in self._originals.items():
            setattr(Tensor, name, original)
        super().__exit__(*exception)

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._count(f"{original.__name__}")
            return original(tensor, *args, **kwargs)

        return method

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self._count("item")
        elif name in ("_to_copy", "copy_"):
            source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
            if source.device.type != "cpu" and target is not None and torch.device(target).type == "cpu":
                self._count("copy to the host")
        elif name in ("nonzero", "masked_select", "equal", "is_nonzero"):  # shapes and answers that the host waits for
            self._count(name)
        return func(*args, **kwargs)

    def _count(self, kind: str) -> None:
        self.counts[self._trial.part] += 1
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_TORCH):
            frame = frame.f_back
        if frame.f_code.co_filename.startswith(_OWN):
            self.own[self._trial.part] += 1
            self.own_sources[f"{os.path.basename(frame.f_code.co_filename)} {frame.f_code.co_name}: {kind}"] += 1


def _host_reads(trial: _Trial, watched_step: Callable[[], Any]) -> HostReads:
    """Of a bare step and a watched one."""
    counters = []
    for step in (trial.step, watched_step):
        step()
        trial.part = "before"
        with _ReadCounter(trial) as counter:
            step()
        counters.append(counter)
    bare, watched = counters
    return HostReads(dict(bare.counts), dict(watched.counts), dict(watched.own), dict(watched.own_sources))


# Identical weights


def _is_identical(trial: _Trial, watch: Watch) -> bool:
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
        f"medians of {report.num_rounds} interleaved rounds, as ratios to the bare step; quartiles beside them",
        "",
        f"{'':<36} {'ratio':>7}  {'quartiles':>15}  {'cpu time':>8}  {'seconds':>8}",
    ]
    for row in report.rows:
        if row.ratio is None:
            lines.append(f"{row.name:<36} {row.note}")
            continue
        cpu = "" if row.cpu_ratio is None else f"{row.cpu_ratio:.3f}"
        quartiles = f"{row.low:.3f} - {row.high:.3f}"
        figures = f"{row.name:<36} {row.ratio:>7.3f}  {quartiles:>15}  {cpu:>8}  {row.seconds:>8.3f}"
        lines.append(f"{figures}  {row.note}".rstrip())
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
