"""What the real model does on this machine's GPU, written to docs/benchmarks.md. Without one: "not measured".

    python scripts/gpu_check.py                  # everything; about an hour
    python scripts/gpu_check.py --part speed     # a part alone: speed, options or stages

Full SDXL with random weights, EMA and gradient checkpointing, as configs/sdxl-4xh100.yaml trains it, on one GPU.
Nothing is written that was not measured: each part replaces its own section, with date, hardware and command.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout, installed or not

from diagnostics import Watch
from shadowlab.bench.flops import share_reached, training_flops, unet_without_memory
from shadowlab.bench.rounds import Rounds, timed
from shadowlab.bench.step import OPTIONS, Loops, measure_encoding
from shadowlab.encoded_batch import DOWNSCALE
from shadowlab.planning import ENCODE, VAE, VALIDATION, plan_memory
from shadowlab.settings import Config, load_config
from shadowlab.tasks import open_task
from shadowlab.training import build_unet

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp32", "tf32", "bf16")
PRESET = "sdxl-4xh100"
GIB = 2**30


@dataclass(frozen=True)
class StepFigures:
    """Of one precision. Seconds are medians; GiB are allocated by torch; synchronisations are counted by place."""

    precision: str
    seconds: float
    bare_seconds: float
    unwatched_seconds: float
    statistics_seconds: float
    share_of_chip: float | None
    peak_gib: float
    planned_gib: float
    synchronisations: Counter[str]
    statistics_synchronisations: Counter[str]


@dataclass(frozen=True)
class StageFigures:
    """One stage, run through the command line."""

    command: str
    exit_code: int
    seconds: float
    summary: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    words = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    parts = {"speed": speed, "options": options, "stages": stages}
    for name, part in parts.items():
        if words.part in (name, "all"):
            body = part(words)
            print(body)
            write_section(words.output, f"gpu-{name}", f"{_heading(words, name)}\n\n{body}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "options", "stages", "all"), default="all")
    parser.add_argument("--image-size", type=int, default=1024, help="side of the pictures")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of timed steps")
    parser.add_argument("--overfit-steps", type=int, default=4000, help="at most, in --part stages")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.md")
    return parser


def _config(words: argparse.Namespace, precision: str, folder: str, *assignments: str) -> Config:
    given = {"model.weights": "random", "device": "cuda", "precision": precision, "output_dir": folder}
    given |= {"data.image_size": words.image_size, "train.batch_size": words.batch, "distributed.processes": 1}
    return load_config(preset=PRESET, options=given, assignments=assignments)


# Speed and memory of a step


def speed(words: argparse.Namespace) -> str:
    flops = training_flops(unet_without_memory("sdxl"), words.batch, words.image_size // DOWNSCALE)
    rows = []
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            rows.append(step_figures(_config(words, precision, folder), words.rounds, flops))
            _forget()
            print(step_table(rows[-1:]), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        share = measure_encoding(_config(words, "bf16", folder), words.rounds)
        _forget()
    return "\n\n".join(
        [
            f"{flops / 1e12:.1f} TFLOP in a step, counted without what gradient checkpointing repeats.",
            step_table(rows),
            synchronisation_lines(rows),
            f"Latents in memory (bf16): {share.about}: encoding takes {share.saved:.1%} of the step that does it, "
            "which a latent cache saves.",
        ]
    )


def step_figures(config: Config, num_rounds: int, flops: int) -> StepFigures:
    """Steps of the configured model on a random batch in memory."""
    device = torch.device(config.device)
    unet = build_unet(config, open_task(config).spec, device)
    loops = Loops(config, unet, config.train.batch_size, config.data.image_size // DOWNSCALE)
    loops.harness()  # optimizer states exist from now on
    torch.cuda.reset_peak_memory_stats(device)
    loops.harness(), loops.with_statistics()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) / GIB
    synchronisations = count_synchronisations(loops.harness)
    of_statistics = count_synchronisations(loops.with_statistics)
    calls = {
        "bare": loops.bare,
        "watched": loops.harness,
        "unwatched": loops.harness,
        "statistics": loops.with_statistics,
    }
    times = Rounds(calls, num_rounds, device, around={"unwatched": lambda: _detached(loops.trainee.watch)})
    seconds = {name: statistics.median(values) for name, values in times.wall.items()}
    loops.close()
    return StepFigures(
        precision=config.precision,
        seconds=seconds["watched"],
        bare_seconds=seconds["bare"],
        unwatched_seconds=seconds["unwatched"],
        statistics_seconds=seconds["statistics"],
        share_of_chip=share_reached(flops, seconds["watched"], torch.cuda.get_device_name(device), config.precision),
        peak_gib=peak,
        planned_gib=planned_gib(config),
        synchronisations=synchronisations,
        statistics_synchronisations=of_statistics,
    )


@contextmanager
def _detached(watch: Watch) -> Iterator[None]:
    watch.detach()
    try:
        yield
    finally:
        watch.attach()


def planned_gib(config: Config) -> float:
    """What `shadowlab plan` foresees as the peak of a step on latents in memory: without the VAE, and without what it
    assumes next to tensors."""
    [plan] = plan_memory(config, device="cuda", strategies=("single",)).strategies
    of_step = [peak for peak in plan.peaks if peak.moment not in (ENCODE, VALIDATION)]
    return max(peak.total - peak.items.get(VAE, 0) for peak in of_step) / GIB


def count_synchronisations(step: Callable[[], Any]) -> Counter[str]:
    """Where a step makes the host wait for the GPU, as torch sees it: `file:line` -> times."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    reported = [one for one in caught if "synchronizing CUDA operation" in str(one.message)]
    return Counter(f"{Path(one.filename).name}:{one.lineno}" for one in reported)


# Options


def options(words: argparse.Namespace) -> str:
    """One after the other: two models of this size do not fit next to each other."""
    seconds: dict[str, float] = {}
    compiled_seconds = None
    for name, assignments in {"no option": [], **{name: one for name, one in OPTIONS.items() if one}}.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            config = _config(words, "bf16", folder, *assignments)
            device = torch.device(config.device)
            unet = build_unet(config, open_task(config).spec, device)
            loops = Loops(config, unet, config.train.batch_size, config.data.image_size // DOWNSCALE)
            first = timed(loops.harness, device)[0]
            compiled_seconds = first if config.model.compile else compiled_seconds
            seconds[name] = statistics.median(Rounds({name: loops.harness}, words.rounds, device).wall[name])
            loops.close()
            del unet, loops
            _forget()
    base = seconds["no option"]
    rows = [[name, f"{value:.3f}", f"{value / base:.3f}"] for name, value in seconds.items()]
    note = f"The first compiled step took {compiled_seconds:.0f} s. bf16, one after the other."
    return f"{markdown_table(['option', 'seconds a step', 'ratio'], rows)}\n\n{note}"


# The three stages


def stages(words: argparse.Namespace) -> str:
    """check-forward, overfit of 16 rendered samples and train, through the command line, with the embedded VAE."""
    rows = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        common = ["--preset", PRESET, "--weights", "random", "--data", "embedded", "--device", "cuda"]
        common += ["--precision", "bf16", "--set", "model.vae=embedded", "--set", f"data.image_size={words.image_size}"]
        common += ["--set", f"train.batch_size={words.batch}", "--set", "distributed.processes=1"]
        common += ["--set", f"output_dir={folder}"]
        common += ["--set", f"overfit.max_steps={words.overfit_steps}", "--set", "checkpoint.keep_last=1"]
        for stage, own in (
            ("check-forward", []),
            ("overfit", ["--samples", "16"]),
            ("train", ["--max-steps", "20", "--set", "validation.num_samples=2", "--set", "optimizer.warmup_steps=0"]),
        ):
            given = [stage, *own, *common, "--json", "--run", stage]
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", "cli.main", *given], cwd=ROOT, capture_output=True, text=True)
            rows.append(
                StageFigures(
                    f"shadowlab {' '.join([stage, *own])}",
                    done.returncode,
                    time.perf_counter() - started,
                    json.loads(done.stdout or "{}"),
                )
            )
            print(stage_table(rows[-1:]), done.stderr[-2000:], flush=True)
            if done.returncode:
                break
    return stage_table(rows)


# Text


def step_table(rows: Sequence[StepFigures]) -> str:
    header = ["precision", "seconds a step", "to a bare loop", "Watch on / off", "with statistics"]
    header += ["share of the chip's rate", "peak GiB", "planned GiB", "synchronisations", "with statistics"]
    return markdown_table(
        header,
        [
            [
                row.precision,
                f"{row.seconds:.3f}",
                f"{row.seconds / row.bare_seconds:.3f}",
                f"{row.seconds / row.unwatched_seconds:.3f}",
                f"{row.statistics_seconds / row.seconds:.3f}",
                "rate not known" if row.share_of_chip is None else f"{row.share_of_chip:.1%}",
                f"{row.peak_gib:.1f}",
                f"{row.planned_gib:.1f}",
                str(row.synchronisations.total()),
                str(row.statistics_synchronisations.total()),
            ]
            for row in rows
        ],
    )


def synchronisation_lines(rows: Sequence[StepFigures]) -> str:
    found = Counter[str]()
    for row in rows:
        found |= row.synchronisations | row.statistics_synchronisations
    listed = ", ".join(f"{place} x {number}" for place, number in sorted(found.items())) or "none"
    return f"Where the host waits for the GPU: {listed}."


def stage_table(rows: Sequence[StageFigures]) -> str:
    return markdown_table(
        ["command", "exit code", "seconds", "result"],
        [
            [
                f"`{row.command}`",
                str(row.exit_code),
                f"{row.seconds:.0f}",
                ", ".join(f"{k} {v:.4g}" for k, v in row.summary.items() if type(v) in (int, float))
                or str(row.summary.get("error", "")),
            ]
            for row in rows
        ],
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def write_section(file: Path, name: str, body: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the file has no such place.
    """
    text = file.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{file}: needs one line `{start}` and after it one `{end}`, between which the figures go")
    head, tail = text[: text.index(start) + len(start)], text[text.index(end) :]
    file.write_text(f"{head}\n{body}\n{tail}", encoding="utf-8")


def _heading(words: argparse.Namespace, part: str) -> str:
    device = torch.cuda.get_device_properties(0)
    command = f"python scripts/gpu_check.py --part {part} --image-size {words.image_size} --batch {words.batch}"
    memory = f"{device.total_memory / GIB:.0f} GiB"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {device.name} ({memory}), {versions}; `{command}`"


def _forget() -> None:
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
