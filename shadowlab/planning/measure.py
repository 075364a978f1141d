"""The true peak of a round of training, measured in a process of its own, to hold the plan against.

On a CPU it is the resident memory that Linux counts, above what Python and torch take once a small round has run;
on a GPU what torch's allocator has handed out.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from diagnostics.files import read_text
from shadowlab.distributed import SingleProcess, pick_device
from shadowlab.errors import StageFailedError, UserError
from shadowlab.models import ModelSpec
from shadowlab.planning.rehearsal import ALL_MOMENTS, Rehearsal
from shadowlab.settings import Config
from shadowlab.tasks import open_task
from shadowlab.training import build_trainee, build_unet

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Freed tensors go back to the system at once, and no page is larger than what is asked for: resident memory is what
# tensors hold.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "THP_MEM_ALLOC_ENABLE": "0"}


def measured_peaks(config: Config) -> dict[str, int]:
    """Moment -> bytes, of two rounds of one process in a new process; the second is measured.

    Raises:
        UserError: on a CPU that is not Linux's.
        StageFailedError: the process ended without a result, for lack of memory for example.
    """
    if pick_device(config.device).type == "cpu" and not _RESET.exists():
        raise UserError("--measure on a CPU reads Linux's /proc; run it on Linux or on a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "shadowlab.planning.measure"],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        env=os.environ | _ENVIRONMENT,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"signal {-done.returncode}, as a lack of memory gives"]
        raise StageFailedError(f"the measured process failed: {last[0]}")
    return json.loads(done.stdout.splitlines()[-1])


class _HostPeaks:
    def __init__(self) -> None:
        self._baseline = _status_bytes("VmRSS")

    def reset(self) -> None:
        _RESET.write_text("5")

    def peak(self) -> int:
        return _status_bytes("VmHWM") - self._baseline


class _CudaPeaks:
    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def _status_bytes(key: str) -> int:
    line = next(line for line in read_text(_STATUS).splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _measure(config: Config) -> dict[str, int]:
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    smallest = _smallest(config, open_task(config).spec)
    _rehearsal(smallest, device, lambda _: None).run()  # libraries are loaded, kernels made
    gc.collect()
    meter = _CudaPeaks() if device.type == "cuda" else _HostPeaks()
    peaks: dict[str, int] = {}
    current = ""

    def enter(moment: str) -> None:
        nonlocal current
        peaks[current] = max(peaks.get(current, 0), meter.peak())
        current = moment
        meter.reset()

    rehearsal = _rehearsal(config, device, enter)
    for _ in range(2):
        peaks.clear()
        rehearsal.run()
    enter("")
    return {moment: peaks[moment] for moment in ALL_MOMENTS}


def _rehearsal(config: Config, device: torch.device, enter: Callable[[str], None]) -> Rehearsal:
    task = open_task(config, device)
    unet, train = build_unet(config, task.spec, device), config.train
    alone = SingleProcess(device)
    trainee = build_trainee(
        config, unet, task.objective, alone, config.optimizer, train.max_steps, ema_decay=train.ema_decay
    )
    return Rehearsal(config, trainee, task, enter, lambda _: None)


def _smallest(config: Config, spec: ModelSpec) -> Config:
    """The same run with one small picture, and with the tiny model where no tokens have to fit the own one."""
    model = {} if spec.keeps_cross_attention else {"architecture": "tiny", "weights": "random", "vae": "embedded"}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "data": config.data.model_copy(update={"image_size": 64}),
            "train": config.train.model_copy(update={"batch_size": 1}),
            "validation": config.validation.model_copy(update={"num_samples": 1, "num_noises": 1}),
        }
    )


if __name__ == "__main__":
    print(json.dumps(_measure(Config.model_validate_json(sys.stdin.read()))))
