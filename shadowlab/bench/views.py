"""What the views of a run cost: bytes of event files, and time compared with that of the record itself.

The records are made up: the layers and parameters of SDXL's UNet as this project trains it, with noise for statistics,
which no picture format can compress.
"""

import fnmatch
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diagnostics import leaf_modules
from diagnostics.records import STATISTICS, RecordWriter
from diagnostics.statistics import histogram
from shadowlab.bench.trial import narrowed_sdxl
from shadowlab.settings import load_config
from shadowlab.views.tensorboard import Board

NUM_SAMPLES = 257_612
"""Of the data set that the records say they are trained on."""


@dataclass(frozen=True)
class ViewsRow:
    """One cadence; milliseconds are those of one logged step."""

    name: str
    num_records: int
    event_bytes: int
    """Of event files."""
    picture_bytes: int
    """Those of them that are pictures."""
    dumps: int
    """Measured steps that have all layers."""
    json_ms: float
    """Median of writing the record."""
    view_ms: float
    """Median of writing the view."""
    cpu_ms: float
    """All processor time of the view (its writer thread and heat maps too), spread over all steps."""


@dataclass(frozen=True)
class ViewsReport:
    """What the views of a run cost."""

    num_layers: int
    num_parameters: int
    num_threads: int
    rows: list[ViewsRow]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_views(num_records: int, on_row: Callable[[str], None] = lambda line: None) -> ViewsReport:
    """Write `num_records` logged steps, with the layers in each, and at the cadence of the `sdxl` preset."""
    with torch.device("meta"):
        unet = narrowed_sdxl(1e6)
    layers = list(leaf_modules(unet))
    parameters = [name for name, _ in unet.named_parameters()]
    settings = load_config(preset="sdxl").diagnostics
    chosen = [n for n in parameters if any(fnmatch.fnmatch(n, p) for p in settings.histogram_parameters)]
    rows = []
    for name, every in (
        ("layers in every step", 1),
        (f"layers in every {settings.statistics_every}th", settings.statistics_every),
    ):
        on_row(f"{name}: {num_records} steps")
        content = records(layers, parameters, num_records, every, chosen, settings.histograms_every)
        rows.append(_measure(name, content))
    return ViewsReport(len(layers), len(parameters), torch.get_num_threads(), rows)


def records(
    layers: Sequence[str],
    parameters: Sequence[str],
    num_records: int,
    every: int,
    histogram_parameters: Sequence[str] = (),
    histograms_every: int = 1000,
    *,
    first: int = 1,
) -> Iterator[dict[str, Any]]:
    """Training records of steps from `first` on, with the layers' statistics in every `every`-th and in step 1.

    Seeded.
    """
    random = torch.Generator().manual_seed(first - 1)
    bins = asdict(histogram(torch.randn(10_000, generator=random)))
    for step in range(first, first + num_records):
        run = torch.rand(12, generator=random).tolist()
        record: dict[str, Any] = {
            "kind": "train",
            "step": step,
            "loss": run[0],
            "grad_norm": run[1],
            "grad_norm_clipped": run[2],
            "loss_by_t": {f"{q / 4:.2f}-{(q + 1) / 4:.2f}": run[3 + q] for q in range(4)},
            "learning_rate": run[7],
            "step_seconds": run[8],
            "data_wait_seconds": run[9],
            "data_wait_share": run[10],
            "samples": [_sample(8 * (step - 1) + i) for i in range(8)],
            "skipped": False,
            "num_skipped": 0,
            "memory_gib": run[11],
        }
        if step == 1 or step % every == 0:
            noise = torch.randn(len(layers), 2, len(STATISTICS), generator=random).mul(3).exp()
            noise[:, :, STATISTICS.index("num_nonfinite")] = 0
            record["layers"] = {
                name: {
                    part: dict(zip(STATISTICS, row, strict=True))
                    for part, row in zip(("activation", "gradient"), rows, strict=True)
                }
                for name, rows in zip(layers, noise.tolist(), strict=True)
            }
            values = torch.randn(len(parameters), 2, generator=random).mul(3).exp().tolist()
            record["parameters"] = {
                name: {"gradient_norm": own[0], "update_ratio": own[1]}
                for name, own in zip(parameters, values, strict=True)
            }
        if step == 1 or step % histograms_every == 0:
            record["histograms"] = {
                f"histogram_{kind}/{name}": bins for name in histogram_parameters for kind in ("weight", "gradient")
            }
        yield record


def _sample(position: int) -> str:
    """Id of the sample at a position of the stream: the data set over and over."""
    place = position % NUM_SAMPLES
    return f"obj_{place // 18:05d}_light_{place % 18:02d}"


def _measure(name: str, content: Iterator[dict[str, Any]]) -> ViewsRow:
    json_seconds, view_seconds, cpu = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        writer = RecordWriter(Path(folder) / "metrics.jsonl")
        board = Board(Path(folder) / "board")
        for record in content:
            started = time.perf_counter()
            writer.write(record)
            json_seconds.append(time.perf_counter() - started)
            started, started_cpu = time.perf_counter(), time.process_time()
            board.write(record)
            view_seconds.append(time.perf_counter() - started)
            board.flush()  # so that the writer thread's time is counted here
            cpu += time.process_time() - started_cpu
        writer.close()
        started_cpu = time.process_time()
        board.close()
        cpu += time.process_time() - started_cpu
        files = [file for file in (Path(folder) / "board").rglob("*") if file.is_file()]
        return ViewsRow(
            name,
            num_records=len(json_seconds),
            event_bytes=sum(file.stat().st_size for file in files),
            picture_bytes=board.picture_bytes,
            dumps=board.num_dumps,
            json_ms=1e3 * statistics.median(json_seconds),
            view_ms=1e3 * statistics.median(view_seconds),
            cpu_ms=1e3 * cpu / len(json_seconds),
        )


def format_table(report: ViewsReport) -> str:
    """The report for people, plain text."""
    lines = [
        f"{report.num_layers} layers, {report.num_parameters} parameters (SDXL's), noise for statistics, "
        f"{report.num_threads} threads",
        "",
        f"{'':<28}{'MB / 1,000':>12}{'pictures':>10}{'dumps':>7}{'JSON ms':>9}{'view ms':>9}{'cpu ms':>8}",
    ]
    for row in report.rows:
        thousand = 1e3 / row.num_records / 1e6
        lines.append(
            f"{row.name:<28}{row.event_bytes * thousand:>12.2f}{row.picture_bytes * thousand:>10.2f}{row.dumps:>7}"
            f"{row.json_ms:>9.2f}{row.view_ms:>9.2f}{row.cpu_ms:>8.2f}"
        )
    lines += ["", "MB of event files per 1,000 logged steps; JSON and view: median of the two writes of a step"]
    lines += [f"{row.name}: below 1 % of a step that takes {row.cpu_ms / 10:.2f} s or more" for row in report.rows]
    return "\n".join(lines)
