"""check-precision: one training step under each precision policy next to a better one, layer by layer.

The better one is float64, or float32 for models above half a billion parameters. Forward and backward are compared
with it. The update is not: each parameter's own gradient is given to AdamW as configured and to AdamW in float64, so
that what the optimizer's arithmetic loses is distinguished from what the gradient had lost before.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from diagnostics.files import replace_text
from diagnostics.statistics import LayerTrace, deviation
from shadowlab.console import Reporter
from shadowlab.distributed import SingleProcess
from shadowlab.encoded_batch import DOWNSCALE, EncodedBatch
from shadowlab.interruption import signals
from shadowlab.models import POLICIES
from shadowlab.runs import RunFolder
from shadowlab.seeding import permutation
from shadowlab.session import Session
from shadowlab.settings import Config
from shadowlab.stages.check_forward import SMALL_LATENT
from shadowlab.stages.check_precision.half_products import Float32Products
from shadowlab.stages.check_precision.report import LayerRow, PolicyReport, UpdateRow, layers_table, summary_table
from shadowlab.stages.result import StageResult
from shadowlab.training import StepPlace, Trainee, adamw, build_trainee, build_unet, objective_loss

MAX_ERROR = 0.25  # relative, of a gradient: with more, steps of a quarter of their length go elsewhere
MIN_HEADROOM_BITS = 3.0  # activations may grow eightfold in training before they overflow
MAX_UNDERFLOW = 0.1  # of a layer's gradient: elements that became zero or subnormal
MAX_LOST = 0.1  # of a parameter's elements: their update is rounded away by the weight's dtype

_MAX_FLOAT64_PARAMETERS = 5e8
_NUM_SAMPLES = 2
_FIRST_SCALE = 2.0**16  # GradScaler's
_NOISE = 1e3  # times the reference's rounding: a gradient below that is zero by construction (a bias before a norm)


@dataclass
class _Measured:
    """A step that ran."""

    trace: LayerTrace
    gradient_norm: float
    """Before clipping, unscaled."""
    scale: float
    """What the loss was multiplied by."""
    updates: dict[str, UpdateRow] = field(default_factory=dict)


def run_check_precision(session: Session, *, num_layers: int = 8) -> StageResult:
    """Compare every policy that exists on this device. Passes if the configured one holds.

    Args:
        num_layers: how many of a policy's worst layers are printed; reports/precision.json has them all.

    Raises:
        UserError: data or weights cannot be read.
    """
    config, reporter = session.config, session.reporter
    session.processes.require_single("check-precision")
    device = session.processes.device
    batch = _batch(session)
    reference, width = _reference(session, batch)
    reports = []
    for name in POLICIES:
        if POLICIES[name].allows_tf32 and device.type != "cuda":
            reporter.say(f"{name}: not measured, TF32 exists on NVIDIA GPUs only", style="dim")
            continue
        reports.append(_report(name, _measured(session, name, batch), reference, width))
        reporter.table(layers_table(reports[-1], num_layers))
    reporter.table(summary_table(reports))
    return _conclude(config, session.run, reporter, reports, width)


def _conclude(
    config: Config, run: RunFolder, reporter: Reporter, reports: list[PolicyReport], width: torch.dtype
) -> StageResult:
    holding = [report.policy for report in reports if not report.problems]
    for report in reports:
        for place, problem in list(report.problems.items())[:3]:
            reporter.say(f"{report.policy} does not hold: {place}: {problem}", style="yellow")
    reporter.say(f"holds: {', '.join(holding) or 'none'}")
    document = {"reference": _name(width), "holds": holding, "policies": [asdict(report) for report in reports]}
    folder = run.path / "reports"
    folder.mkdir(exist_ok=True)
    replace_text(folder / "precision.json", json.dumps(_plain(document), indent=1, allow_nan=False) + "\n")
    chosen = next(report for report in reports if report.policy == config.precision)
    message = "; ".join(f"{place}: {problem}" for place, problem in list(chosen.problems.items())[:3])
    if message:
        message = f"--precision {config.precision} does not hold: {message}; use {' or '.join(holding) or 'fp32'}"
    summary = {"precision": config.precision, "holds": holding, "problems": {r.policy: r.problems for r in reports}}
    return StageResult("check-precision", not chosen.problems, summary, message)


# The step


def _reference(session: Session, batch: EncodedBatch) -> tuple[_Measured, torch.dtype]:
    """The step to compare with, and the dtype it was computed in."""
    with _one_model(session, "fp32") as trainee:
        num_parameters = sum(p.numel() for p in trainee.unet.parameters())
        width = torch.float64 if num_parameters <= _MAX_FLOAT64_PARAMETERS else torch.float32
        side = batch.data.shape[-1]
        session.reporter.say(
            f"check-precision: {num_parameters:,} parameters, {', '.join(batch.ids)}, {side} x {side} latents, "
            f"compared with {_name(width)}"
        )
        if width is torch.float64:
            nn.Module.to(trainee.unet, width)  # diffusers' own warns
            if session.task.spec.embedding_dim is not None:
                embedding = trainee.unet.class_embedding
                embedding.register_forward_pre_hook(lambda _, inputs: tuple(x.to(width) for x in inputs))
        return _traced(trainee, batch), width


def _measured(session: Session, policy: str, batch: EncodedBatch) -> _Measured:
    with _one_model(session, policy) as trainee:
        measured = _traced(trainee, batch)
        measured.updates = _updates(trainee, batch, measured, session.config)
        return measured


@contextmanager
def _one_model(session: Session, policy: str) -> Iterator[Trainee]:
    """Its weights are gone afterwards, whatever cycles of references it was part of: two of SDXL would not fit."""
    signals.stop_if_asked()
    trainee = _trainee(session, policy)
    try:
        yield trainee
    finally:
        trainee.optimizer.state.clear()
        trainee.unet.to_empty(device="meta")


def _batch(session: Session) -> EncodedBatch:
    # Small pictures: precision is a matter of values, not of resolution, and SDXL at 1024 takes minutes on a CPU.
    config, task = session.config, session.task
    dataset = task.open_data(min(config.data.image_size, SMALL_LATENT * DOWNSCALE))
    chosen = permutation(len(dataset), config.seed, "check-samples")[:_NUM_SAMPLES].tolist()
    task.load_vae(session.processes.device)
    return task.encode(task.collate([dataset[i] for i in chosen]))


def _trainee(session: Session, policy: str) -> Trainee:
    config, task, device = session.config, session.task, session.processes.device
    config = config.eager().model_copy(update={"precision": policy})
    unet = build_unet(config, task.spec, device)
    alone = SingleProcess(device)
    trainee = build_trainee(
        config, unet, task.objective, alone, config.optimizer, config.train.max_steps, ema_decay=None
    )
    trainee.watch.detach()
    return trainee


def _traced(trainee: Trainee, batch: EncodedBatch) -> _Measured:
    scale, norm = _calibrated(trainee, batch)
    trace = LayerTrace(trainee.unet)
    with trace.recording():
        _backward(trainee, batch, scale, lambda name, parameter: None)
    return _Measured(trace, norm, scale)


def _updates(trainee: Trainee, batch: EncodedBatch, measured: _Measured, config: Config) -> dict[str, UpdateRow]:
    rate, limit = config.optimizer.learning_rate, config.optimizer.max_grad_norm  # after warm-up, whose first is tiny
    clip = 1.0 if limit is None else min(1.0, limit / (measured.gradient_norm + 1e-6))
    rows = {}

    def update(name: str, parameter: nn.Parameter) -> None:
        rows[name] = _update(parameter, config, rate, clip / measured.scale)

    _backward(trainee, batch, measured.scale, update)
    return {name: rows[name] for name in trainee.parameters() if name in rows}  # in the model's order


def _calibrated(trainee: Trainee, batch: EncodedBatch) -> tuple[float, float]:
    """(scale of the loss that a gradient scaler would come to, norm of all gradients without it)."""
    scale = 1.0 if trainee.scaler is None else _FIRST_SCALE
    squares: dict[str, Tensor] = {}

    def add(name: str, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        squares[name] = parameter.grad.double().square().sum()

    while True:
        _backward(trainee, batch, scale, add)
        norm = float(torch.stack(list(squares.values())).sum().sqrt()) / scale
        if math.isfinite(norm) or trainee.scaler is None or scale <= 1.0:
            return scale, norm
        scale /= 2


def _backward(
    trainee: Trainee, batch: EncodedBatch, scale: float, on_gradient: Callable[[str, nn.Parameter], None]
) -> None:
    """Forward and backward. Each gradient is shown and dropped as it comes: no second copy of the weights is held."""

    def shown(name: str) -> Callable[[nn.Parameter], None]:
        def hook(parameter: nn.Parameter) -> None:
            with _disable_current_modes():  # no product in there, only time
                on_gradient(name, parameter)
            parameter.grad = None

        return hook

    handles = [p.register_post_accumulate_grad_hook(shown(name)) for name, p in trainee.parameters().items()]
    try:
        with Float32Products() if trainee.precision.uses_half and trainee.device.type == "cpu" else nullcontext():
            loss = objective_loss(trainee, trainee.unet, batch, StepPlace(0, 0, len(batch.ids))).mean()
            (loss * scale).backward()
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _update(parameter: nn.Parameter, config: Config, rate: float, factor: float) -> UpdateRow:
    """The first AdamW step of one parameter in its own dtype and in float64, from the same gradient."""
    assert parameter.grad is not None
    gradient = parameter.grad * factor
    before = parameter.detach().clone()
    updates = []
    for start, slope in ((before, gradient), (before.double(), gradient.double())):
        weight = start.clone().requires_grad_()
        weight.grad = slope
        optimizer = adamw([weight], config.optimizer)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        updates.append(weight.detach().double() - start.double())
    update, exact = updates
    norm = float(exact.norm())
    should = exact != 0
    lost = float((should & (update == 0)).sum()) / max(1, int(should.sum()))
    error = float((update - exact).norm()) / norm if norm else 0.0
    return UpdateRow(error, lost, int((~torch.isfinite(update)).sum()))


# Judgement


def _report(name: str, measured: _Measured, reference: _Measured, width: torch.dtype) -> PolicyReport:
    exact, seen = reference.trace, measured.trace
    norms = {layer: math.hypot(*(float(g.double().norm()) for g in parts)) for layer, parts in exact.gradients.items()}
    floor = _NOISE * torch.finfo(width).eps * max(norms.values(), default=0.0)
    layers = {
        layer: LayerRow(
            deviation(seen.activations[layer], exact.activations[layer]),
            deviation(seen.gradients[layer], exact.gradients[layer], measured.scale)
            if norms.get(layer, 0.0) > floor
            else None,
        )
        for layer in exact.activations
    }
    return PolicyReport(name, measured.scale, layers, measured.updates, _problems(layers, measured))


def _problems(layers: dict[str, LayerRow], measured: _Measured) -> dict[str, str]:
    """What is not finite comes first, then what is nearly so, then what is inexact; the worst of each first."""
    found: list[tuple[int, float, str, str]] = []
    for name, row in layers.items():
        for what, part in (("activation", row.activation), ("gradient", row.gradient)):
            if part is None:
                continue
            scaled = what == "gradient" and measured.scale != 1.0
            if part.num_nonfinite:
                found.append((0, 0.0, name, f"{part.num_nonfinite} elements of its {what} are NaN or Inf"))
            elif part.headroom_bits < MIN_HEADROOM_BITS and not scaled:
                text = f"its {what} is {part.headroom_bits:.1f} bits below overflow, less than {MIN_HEADROOM_BITS:g}"
                found.append((1, part.headroom_bits, name, text))
            elif part.relative_error > MAX_ERROR:
                found.append((2, -part.relative_error, name, f"its {what} is off by {part.relative_error:.0%}"))
            elif what == "gradient" and part.underflow > MAX_UNDERFLOW:
                text = f"{part.underflow:.0%} of its gradient underflows"
                found.append((3, -part.underflow, name, text))
    for name, update in measured.updates.items():
        if update.num_nonfinite:
            text = f"{update.num_nonfinite} elements are NaN or Inf after the first AdamW step: its eps is zero here"
            found.append((0, 1.0, name, text))
        elif update.lost > MAX_LOST:
            found.append((4, -update.lost, name, f"{update.lost:.0%} of its update is rounded away"))
    problems: dict[str, str] = {}
    for _, _, name, text in sorted(found, key=lambda one: one[:2]):
        problems.setdefault(name, text)
    return problems


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(value: object) -> object:
    """JSON has no NaN and no Inf: they become text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
