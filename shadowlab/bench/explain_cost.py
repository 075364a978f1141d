"""What `explain` costs, in steps of the same loop: over the number of operators, their size, and where a fault lies.

Every way is one fresh training step, timed bare and explained in turns; a figure is the median of the rounds' ratios.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import explain
from shadowlab.bench.rounds import timed
from shadowlab.bench.trial import Trial, narrowed_sdxl

BOUND_OF_LOOPS = 20.0
BOUND_OF_MODELS = 3.0
_MOST_GROWTH = 1.3  # of the ratio from the fewest cells to the most: what else is linear
_WIDTHS = (32, 128, 512)  # of a cell
_CELLS_OF_WIDTHS = 100
_DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """A step that can be run again and again."""

    name: str
    bound: float | None
    """Steps that an explanation may take; None where it is measured alone."""
    step: Callable[[], Any]
    explained: Callable[[], Any]
    put_back: Callable[[], None]
    """Called before each, untimed: weights and states as at first."""


@dataclass(frozen=True)
class CostRow:
    """One subject."""

    name: str
    ratio: float
    """Median over the rounds of an explanation's time to a bare step's."""
    cpu_ratio: float
    """The same of processor time, which other processes disturb less."""
    step_seconds: float
    """Median bare step."""
    bound: float | None

    @property
    def is_within(self) -> bool:
        return self.bound is None or self.cpu_ratio <= self.bound


@dataclass(frozen=True)
class CostReport:
    """What explanations cost."""

    rows: list[CostRow]
    num_rounds: int
    num_threads: int
    torch: str
    growth: float
    """The ratio of the loop with the most cells to that with the fewest; 1 where time grows as the step does."""

    @property
    def passed(self) -> bool:
        return all(row.is_within for row in self.rows) and self.growth <= _MOST_GROWTH

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


class Recurrence(nn.Module):
    """A GRU cell, called for each token: thousands of small operators one after the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (N, B, D) -> (B, 1)."""
        hidden = tokens.new_zeros(tokens.shape[1:])
        for token in tokens:
            hidden = self.cell(token, hidden)
        prediction: Tensor = self.head(hidden)
        return prediction


def recurrent(num_cells: int, width: int, fault: str | None, bound: float | None = BOUND_OF_LOOPS) -> Subject:
    """fault: None, or where a NaN is born: `first token` or `middle token` (of the batch), or `loss`."""
    torch.manual_seed(0)
    model = Recurrence(width)
    tokens = torch.randn(num_cells, 8, width)
    if fault is not None and "token" in fault:
        tokens[0 if fault == "first token" else num_cells // 2, 1, 0] = math.nan

    def compute_loss() -> Tensor:
        prediction: Tensor = model(tokens)
        return (prediction.square() if fault != "loss" else (-prediction.abs()).log()).mean()

    name = f"{num_cells:,} GRU cells of width {width}" + ("" if fault is None else f", NaN in the {fault}")
    return _subject(name, bound, model, compute_loss, {"tokens": tokens})


def transformer() -> Subject:
    """Four layers of width 512 on 4 sequences of 128."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    tokens = torch.randn(4, 128, 512)
    name = f"transformer, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters"
    return _subject(name, BOUND_OF_MODELS, model, lambda: model(tokens).square().mean(), {"tokens": tokens})


def unet(num_parameters: float, batch: int, size: int) -> Subject:
    """SDXL's UNet narrowed, on latents of size x size."""
    torch.manual_seed(0)
    trial = Trial(narrowed_sdxl(num_parameters), batch, size, _DEVICE)
    explained = partial(explain, trial.step, model=trial.unet, optimizer=trial.optimizer, batch=trial.batch)
    return Subject(
        f"UNet, {trial.num_parameters / 1e6:.0f} M parameters", BOUND_OF_MODELS, trial.step, explained, lambda: None
    )


def _subject(
    name: str, bound: float | None, model: nn.Module, compute_loss: Callable[[], Tensor], batch: dict[str, Tensor]
) -> Subject:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    start = {key: value.clone() for key, value in model.state_dict().items()}

    def put_back() -> None:
        model.load_state_dict(start)  # a NaN that the round before left is nobody's fault
        optimizer.state.clear()
        optimizer.zero_grad()

    def step() -> Tensor:
        loss = compute_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    explained = partial(explain, step, model=model, optimizer=optimizer, batch=batch)
    return Subject(name, bound, step, explained, put_back)


def subjects(
    cells: Sequence[int], num_parameters: float, batch: int, size: int
) -> Iterator[tuple[str, Callable[[], Subject]]]:
    """(kind, maker): made one after the other, so that one is in memory at a time."""
    for num in cells:
        yield "loop", partial(recurrent, num, _WIDTHS[0], None)
        for fault in ("first token", "middle token", "loss"):
            yield "fault", partial(recurrent, num, _WIDTHS[0], fault)
    for width in _WIDTHS[1:]:
        yield "width", partial(recurrent, _CELLS_OF_WIDTHS, width, None)
    yield "model", transformer
    if num_parameters:
        yield "model", partial(unet, num_parameters, batch, size)


def measure_explain_cost(
    cells: Sequence[int] = (500, 2000),
    num_rounds: int = 3,
    num_parameters: float = 80e6,
    on_row: Callable[[str], None] = lambda line: None,
    *,
    batch: int = 4,
    size: int = 32,
) -> CostReport:
    """Measure everything; `on_row` receives a line of text as each subject is done.

    Args:
        cells: lengths of the loops.
        num_parameters: of the UNet; 0 leaves it out. batch, size: its samples, and the side of their latents.
    """
    rows, loops = [], []
    with torch.random.fork_rng(devices=[]):
        for kind, make in subjects(sorted(cells), num_parameters, batch, size):
            row = _row(make(), num_rounds)
            rows.append(row)
            loops += [row.cpu_ratio] if kind == "loop" else []
            on_row(_line(row))
    return CostReport(rows, num_rounds, torch.get_num_threads(), torch.__version__, loops[-1] / loops[0])


def _row(subject: Subject, num_rounds: int) -> CostRow:
    subject.step()
    walls, cpus, steps = [], [], []
    for _ in range(num_rounds):
        subject.put_back()
        wall, cpu = timed(subject.step, _DEVICE)
        subject.put_back()
        explained_wall, explained_cpu = timed(subject.explained, _DEVICE)
        walls.append(explained_wall / wall)
        cpus.append(explained_cpu / cpu)
        steps.append(wall)
    return CostRow(
        subject.name, statistics.median(walls), statistics.median(cpus), statistics.median(steps), subject.bound
    )


def _line(row: CostRow) -> str:
    bound = "" if row.bound is None else f"at most {row.bound:g}" + ("" if row.is_within else ": MISSED")
    return f"{row.name:<52} {row.ratio:>7.1f}  {row.cpu_ratio:>8.1f}  {row.step_seconds:>8.3f}  {bound}".rstrip()


def format_table(report: CostReport) -> str:
    """The report for people, plain text."""
    lines = [
        f"an explanation's time in bare steps; medians of {report.num_rounds} rounds, {report.num_threads} threads, "
        f"torch {report.torch}",
        f"{'':<52} {'steps':>7}  {'cpu time':>8}  {'seconds':>8}",
        *map(_line, report.rows),
        f"from the fewest cells to the most it grows {report.growth:.2f} times as fast as the step (at most "
        f"{_MOST_GROWTH:g})",
    ]
    return "\n".join(lines)
