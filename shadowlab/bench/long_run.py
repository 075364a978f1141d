"""What the views of a long run cost: records of 150,000 steps of SDXL's layers, and what each command takes on them.

The run is made up, with noise for statistics (see `shadowlab.bench.views`), but written as training writes: headers,
steps, validations, findings, an incident, and a session that was resumed in front of records it wrote again.
"""

import fnmatch
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diagnostics import leaf_modules
from diagnostics.files import read_text
from diagnostics.records import RecordWriter, evaluation
from shadowlab.bench.trial import narrowed_sdxl
from shadowlab.bench.views import NUM_SAMPLES, records
from shadowlab.settings import load_config

_VALIDATED_EVERY = 1000
_AGAIN = 200  # steps that the resumed session wrote for a second time
# Its own peak: what wait4 reports is at least that of the process that started it.
_VIEWS = """
import atexit, pathlib, sys
peak_file = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: peak_file.write_text(pathlib.Path("/proc/self/status").read_text()))
from cli.main import main
main()
"""


@dataclass(frozen=True)
class CommandCost:
    """One command on the run."""

    words: tuple[str, ...]
    """As typed after `shadowlab`, without the run."""
    seconds: float
    cpu_seconds: float
    """Of the processor, user and system: what a busy machine does not change."""
    peak_mib: float
    """Resident memory at most."""
    wrote_bytes: int
    """Of the page, for `report`; else 0."""
    code: int
    """Exit code."""


@dataclass(frozen=True)
class LongRunReport:
    """What the commands took."""

    num_steps: int
    num_layers: int
    record_bytes: int
    """Of metrics.jsonl."""
    costs: list[CommandCost]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_long_run(
    folder: Path,
    num_steps: int,
    *,
    layers: Sequence[str] | None = None,
    parameters: Sequence[str] | None = None,
    every: int = 50,
) -> int:
    """Write the records of a run into `folder`/metrics.jsonl. Returns their bytes.

    Args:
        num_steps: at least 8.
        layers, parameters: names; those of SDXL's UNet where not given.
        every: steps between statistics.
    """
    if layers is None or parameters is None:
        with torch.device("meta"):
            unet = narrowed_sdxl(1e6)
        layers, parameters = list(leaf_modules(unet)), [name for name, _ in unet.named_parameters()]
    settings = load_config(preset="sdxl").diagnostics
    chosen = [n for n in parameters if any(fnmatch.fnmatch(n, p) for p in settings.histogram_parameters)]
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.jsonl"
    fault = max(4, 2 * num_steps // 3 // every * every)
    resumed = max(1, fault - min(_AGAIN, fault // 2))
    for session, (begin, end) in enumerate(((1, fault), (resumed + 1, num_steps + 1))):
        writer = RecordWriter(metrics)
        writer.write(_header())
        steps = records(layers, parameters, end - begin, every, chosen, settings.histograms_every, first=begin)
        for record in steps:
            writer.write(record)
            if record["step"] % _VALIDATED_EVERY == 0 or record["step"] == 1:
                writer.write(_validation(record["step"]))
        if session == 0:
            writer.write(_finding(fault - 1, layers[0]))
            writer.write(_incident(fault, layers[-1]))
        writer.close()
    return metrics.stat().st_size


def measure_long_run(
    num_steps: int,
    run: Path | None = None,
    on_row: Callable[[str], None] = lambda line: None,
    *,
    only: Sequence[str] | None = None,
) -> LongRunReport:
    """Make a run, or take one that `make_long_run` made, and run the views' commands on it, each in a process.

    Args:
        only: names of the commands; None for all.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "run" if run is None else run
        if not (place / "metrics.jsonl").is_file():
            on_row(f"writing {num_steps} steps")
            make_long_run(place, num_steps)
        page = Path(temporary) / "report.html"
        middle = str(max(1, num_steps // 100 * 50))
        commands = (
            ("runs",),
            ("health",),  # makes the index
            ("health",),
            ("report", "--out", str(page)),
            ("inspect",),
            ("inspect", "--step", middle),
        )
        costs = []
        for words in (words for words in commands if only is None or words[0] in only):
            on_row(f"shadowlab {' '.join(words)}")
            costs.append(_measured(words, place.parent if words == ("runs",) else place, page))
        with torch.device("meta"):
            num_layers = len(list(leaf_modules(narrowed_sdxl(1e6))))
        return LongRunReport(num_steps, num_layers, (place / "metrics.jsonl").stat().st_size, costs)


def _measured(words: tuple[str, ...], place: Path, page: Path) -> CommandCost:
    peak = page.with_name("status.txt")
    command = [sys.executable, "-c", _VIEWS, str(peak), words[0], str(place), *words[1:]]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "2"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    [kib] = [line.split()[1] for line in read_text(peak).splitlines() if line.startswith("VmHWM:")]
    return CommandCost(
        tuple(word for word in words if word != str(page)),
        seconds,
        usage.ru_utime + usage.ru_stime,
        int(kib) / 2**10,
        page.stat().st_size if words[0] == "report" and page.is_file() else 0,
        process.returncode,
    )


def _header() -> dict[str, Any]:
    return {
        "kind": "header",
        "stage": "train",
        "num_samples": NUM_SAMPLES,
        "num_parameters": 2_020_000_000,
        "precision": "bf16",
        "device": "CPU",
    }


def _validation(step: int) -> Mapping[str, Any]:
    fallen = 1.0 + 1e3 / (step + 1e3)
    numbers = {"loss": fallen / 2, "r2": 1 - fallen / 2, "soft_iou": 0.9 - fallen / 4, "rmse": fallen / 8}
    numbers |= {f"loss_t{t:.2f}": fallen * t for t in (0.1, 0.5, 0.9)}
    numbers |= {f"response_{name}": 0.01 * fallen for name in ("theta", "phi", "size")}
    return evaluation("validation", step, numbers)


def _finding(step: int, layer: str) -> dict[str, Any]:
    found = {"rule": "headroom", "severity": "warning", "step": step, "evidence": "made up", "advice": "none"}
    absent = {"parameter": None, "predicted_step": None, "part": "activation"}
    return {"kind": "health", "step": step, "findings": [{**found, "layer": layer, **absent}]}


def _incident(step: int, layer: str) -> dict[str, Any]:
    return {
        "kind": "incident",
        "step": step,
        "verdict": {"phase": "forward", "op": "aten.div", "module": layer, "value": "nan", "exception": "invalid"},
        "state": None,
    }


def format_table(report: LongRunReport) -> str:
    """The report for people, plain text."""
    lines = [
        f"{report.num_steps} steps of {report.num_layers} layers, {report.record_bytes / 1e9:.2f} GB of records",
        "",
        f"{'':<28}{'seconds':>9}{'cpu s':>8}{'MiB':>7}{'page MB':>9}",
    ]
    for cost in report.costs:
        page = f"{cost.wrote_bytes / 1e6:.2f}" if cost.wrote_bytes else ""
        words = " ".join(word for word in cost.words if word != "--out")
        lines.append(f"{words:<28}{cost.seconds:>9.1f}{cost.cpu_seconds:>8.1f}{cost.peak_mib:>7.0f}{page:>9}")
    return "\n".join(lines)
