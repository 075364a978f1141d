"""What the machine offers: devices, memory, threads, disk, caches. Imports torch, psutil and the hub when asked."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diagnostics.files import read_text
from shadowlab.doctor.item import Item
from shadowlab.errors import UserError
from shadowlab.settings import Config

_GIB = 2**30
_MEMORY_GIB = 1.5  # what `tiny` takes in `train`, with torch and diffusers
_DISK_GIB = 1.0
_SHARED_MEMORY_GIB = 1.0


def devices(config: Config) -> Iterator[Item]:
    """Every GPU, the CPU, and whether what the configuration asks for is among them."""
    import torch

    from shadowlab.distributed import pick_device, require_gpus
    from shadowlab.models import POLICIES

    for index in range(torch.cuda.device_count()):
        yield _gpu(index)
    if torch.cuda.device_count() == 0 and Path("/proc/driver/nvidia/version").exists():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        yield Item(
            "device",
            "failed",
            f"an NVIDIA driver is loaded, and torch, which {build}, sees no GPU",
            "compare `nvidia-smi` with https://pytorch.org/get-started/locally, and look at CUDA_VISIBLE_DEVICES",
        )
    yield _cpu()
    try:
        chosen = pick_device(config.device)
        require_gpus(config.device, config.distributed.processes)
        POLICIES[config.precision].apply_to_backend(chosen)
    except UserError as error:
        text, _, fix = str(error).partition("; ")
        yield Item("device", "failed", text, fix)
    else:
        yield Item("device", "ok", f"a run would take {chosen} (device: {config.device}) in {config.precision}")


def _gpu(index: int) -> Item:
    import torch

    properties = torch.cuda.get_device_properties(index)
    name = f"cuda:{index} {properties.name}, compute capability {properties.major}.{properties.minor}"
    try:
        torch.ones(2, device=f"cuda:{index}").sum().item()
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:  # no kernels for it, no memory left, held by somebody else
        reason = str(error).strip().partition("\n")[0]
        return Item("device", "failed", f"{name}: cannot compute ({reason})", "see `nvidia-smi`, or use --device cpu")
    modern = properties.major >= 8  # Ampere brought both
    can = "bf16 and tf32" if modern else "neither bf16 nor tf32: use fp32, or fp16"
    return Item(
        "device", "ok" if modern else "note", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free; has {can}"
    )


def _cpu() -> Item:
    import torch

    flags = _read(Path("/proc/cpuinfo"))
    has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    half = "bf16 in hardware, fp16 emulated" if has_bf16 else "bf16 and fp16 emulated: several times slower than fp32"
    return Item("device", "ok", f"cpu, {torch.backends.cpu.get_cpu_capability()}; {half}; no tf32")


def memory() -> Iterator[Item]:
    """Of the machine, or of the container where that has less."""
    import psutil

    state = psutil.virtual_memory()
    total, free = state.total, state.available
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        used = _read(Path("/sys/fs/cgroup/memory.current")).strip()
        free = min(free, total - int(used)) if used.isdigit() else free
    text = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < _MEMORY_GIB * _GIB:
        yield Item(
            "memory", "failed", f"{text}; `tiny` takes {_MEMORY_GIB:g}", "end other programs, or raise the limit"
        )
    else:
        yield Item("memory", "ok", text)
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < _SHARED_MEMORY_GIB * _GIB:
        mib = shutil.disk_usage(shared).total / 2**20
        text = f"{shared} holds {mib:.0f} MiB: loader processes hand samples over there, and die where it is full"
        yield Item("memory", "note", text, "docker run --shm-size=8g, or leave data.num_workers at 0")


def threads() -> Iterator[Item]:
    """Those of torch against the cores that this process may use."""
    import torch

    cores = _cores()
    count = torch.get_num_threads()
    text = f"torch uses {count} thread{'s' if count > 1 else ''} on {cores:g} core{'s' if cores > 1 else ''}"
    if count > cores:
        yield Item(
            "threads", "note", f"{text}: they wait for one another", f"export OMP_NUM_THREADS={max(1, int(cores))}"
        )
    else:
        yield Item("threads", "ok", text)


def compiler() -> Iterator[Item]:
    """What torch.compile needs on a CPU, and Triton's launcher on a GPU."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is not None:
        yield Item("compiler", "ok", f"{found}, for model.compile=true")
    else:
        text = "no C++ compiler: model.compile=true would fail"
        yield Item("compiler", "note", text, "install g++ or clang, or leave model.compile at false")


def _cores() -> float:
    """Cores that this process may use: its affinity, or less where a container has a quota."""
    available = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).strip().partition(" ")
    return min(available, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else available


def disk(config: Config) -> Iterator[Item]:
    """Where runs, downloaded weights and temporary files go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    yield _writable("runs", Path(config.output_dir), "choose another --set output_dir=DIR", least_gib=_DISK_GIB)
    yield _writable("downloaded weights", Path(HF_HUB_CACHE), "export HF_HOME=DIR", needed=False)
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Item("disk", "failed", f"no folder for temporary files ({error.strerror})", "export TMPDIR=DIR")
    else:
        yield _writable("temporary files", temporary, "export TMPDIR=DIR")


def _writable(what: str, folder: Path, fix: str, *, needed: bool = True, least_gib: float = 0.0) -> Item:
    """Try to write where `folder` is, or would be made.

    Args:
        needed: whether shadowlab cannot work without.
        least_gib: free space below which it cannot.
    """
    state = "failed" if needed else "note"
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free / _GIB
    except OSError as error:
        return Item("disk", state, f"{what}: {folder} cannot be written ({error.strerror})", fix)  # type: ignore[arg-type]
    if free < least_gib:
        return Item("disk", state, f"{what}: {folder}, {free:.1f} GiB free, too few", f"make room, or {fix}")  # type: ignore[arg-type]
    return Item("disk", "ok", f"{what}: {folder}, {free:.1f} GiB free")


def _read(file: Path) -> str:
    """Content of a file of the system; empty where this system has none."""
    try:
        return read_text(file)
    except OSError:
        return ""
