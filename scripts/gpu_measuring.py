"""What `gpu_check.py` measures: the real model's step, its memory, a trip to a verdict, options and stages."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diagnostics import NonFiniteError, Watch
from scripts.gpu_minutes import Note
from shadowlab.bench.flops import share_reached
from shadowlab.bench.rounds import Rounds, timed
from shadowlab.bench.step import Loops
from shadowlab.encoded_batch import DOWNSCALE
from shadowlab.planning import ENCODE, VAE, VALIDATION, plan_memory
from shadowlab.settings import Config, load_config
from shadowlab.tasks import open_task
from shadowlab.training import StepPlace, build_unet, training_step

ROOT = Path(__file__).resolve().parents[1]
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


def _config(words: argparse.Namespace, precision: str, folder: str, *assignments: str) -> Config:
    given = {"model.weights": "random", "device": "cuda", "precision": precision, "output_dir": folder}
    given |= {"data.image_size": words.image_size, "train.batch_size": words.batch, "distributed.processes": 1}
    return load_config(preset=PRESET, options=given, assignments=assignments)


@contextmanager
def config_in_folder(words: argparse.Namespace, precision: str, *assignments: str) -> Iterator[Config]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            yield _config(words, precision, folder, *assignments)
        finally:
            _forget()


def open_loops(config: Config) -> Loops:
    """The configured model on a random batch in memory."""
    unet = build_unet(config, open_task(config).spec, torch.device(config.device))
    return Loops(config, unet, config.train.batch_size, config.data.image_size // DOWNSCALE)


def step_figures(config: Config, num_rounds: int, flops: int, note: Note = lambda name, value: None) -> StepFigures:
    """Steps of the configured model. note: takes each figure as soon as it is there."""
    device, loops = torch.device(config.device), open_loops(config)
    loops.harness()  # optimizer states exist from now on
    torch.cuda.reset_peak_memory_stats(device)
    loops.harness(), loops.with_statistics()
    torch.cuda.synchronize(device)
    peak, planned = torch.cuda.max_memory_allocated(device) / GIB, planned_gib(config)
    note("peak GiB", peak)
    note("planned GiB", planned)
    synchronisations = count_synchronisations(loops.harness)
    of_statistics = count_synchronisations(loops.with_statistics)
    note("synchronisations", synchronisations.total())
    note("synchronisations with statistics", of_statistics.total())
    quick = {"watched": loops.harness, "bare": loops.bare}
    first = {name: statistics.median(values) for name, values in Rounds(quick, 2, device).wall.items()}
    name = torch.cuda.get_device_name(device)
    note("s a step, 2 rounds", first["watched"])
    note("to a bare loop, 2 rounds", first["watched"] / first["bare"])
    note("share of the chip, 2 rounds", share_reached(flops, first["watched"], name, config.precision))
    calls = {
        "bare": loops.bare,
        "watched": loops.harness,
        "unwatched": loops.harness,
        "statistics": loops.with_statistics,
    }
    times = Rounds(calls, num_rounds, device, around={"unwatched": lambda: _detached(loops.trainee.watch)})
    seconds = {name: statistics.median(values) for name, values in times.wall.items()}
    loops.close()
    share = share_reached(flops, seconds["watched"], name, config.precision)
    note("s a step", seconds["watched"])
    note("to a bare loop", seconds["watched"] / seconds["bare"])
    note("Watch on / off", seconds["watched"] / seconds["unwatched"])
    note("share of the chip", share)
    return StepFigures(
        precision=config.precision,
        seconds=seconds["watched"],
        bare_seconds=seconds["bare"],
        unwatched_seconds=seconds["unwatched"],
        statistics_seconds=seconds["statistics"],
        share_of_chip=share,
        peak_gib=peak,
        planned_gib=planned,
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


def trip_figures(loops: Loops) -> dict[str, Any]:
    """A module in the middle of the model divides by zero: what the verdict says, and what the trip there took."""
    module = next(one for name, one in loops.trainee.model.named_modules() if name.endswith("mid_block"))
    place = StepPlace(1, 0, len(loops.batch.ids))
    training_step(loops.trainee, [loops.batch], place)
    clean = timed(lambda: training_step(loops.trainee, [loops.batch], place), loops.device)[0]
    hook = module.register_forward_hook(lambda module, inputs, output: output / torch.zeros_like(output))
    started = time.perf_counter()
    try:
        training_step(loops.trainee, [loops.batch], place)
    except NonFiniteError as error:
        verdict = error.verdict
        seconds = time.perf_counter() - started
        found = verdict.phase == "forward" and "div" in str(verdict.op)
        return {"s": seconds, "clean steps": seconds / clean, "says": verdict.headline(), "is right": found}
    finally:
        hook.remove()
        loops.close()
    raise RuntimeError("a division by zero in the model did not trip the watch")


def option_seconds(config: Config, num_rounds: int) -> tuple[float, float]:
    """Of the first step, which compiles where that is asked for, and of the median one."""
    loops = open_loops(config)
    first = timed(loops.harness, loops.device)[0]
    seconds = statistics.median(Rounds({"step": loops.harness}, num_rounds, loops.device).wall["step"])
    loops.close()
    return first, seconds


def stage_rows(words: argparse.Namespace, left: float | None = None) -> Iterator[tuple[StageFigures, str]]:
    """Of each stage, run through the command line with the embedded VAE, its figures and the end of its errors.

    Args:
        left: seconds for all; None for as many as they take.

    Raises:
        subprocess.TimeoutExpired: a stage took longer.
    """
    began = time.perf_counter()
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
            done = subprocess.run(
                [sys.executable, "-m", "cli.main", *given],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=None if left is None else max(1.0, left - (started - began)),
            )
            command = f"shadowlab {' '.join([stage, *own])}"
            seconds = time.perf_counter() - started
            yield StageFigures(command, done.returncode, seconds, json.loads(done.stdout or "{}")), done.stderr[-2000:]
            if done.returncode:
                return


def _forget() -> None:
    gc.collect()
    torch.cuda.empty_cache()
