"""Shared by all tests: reproducible properties, and small models that are made once."""

import fcntl
import gc
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers with two threads each wait for one another

import pytest
from hypothesis import settings

# torch and diffusers are imported in fixtures: the process that only hands out tests need not wait for them.

settings.register_profile("shadowlab", deadline=None, derandomize=True)
settings.load_profile("shadowlab")


SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").split())
"""As `scripts/slow_tests.py` measured them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: one that starts last would leave the other processors without work."""
    for item in items:
        if item.nodeid.split("[")[0] in SLOW:
            item.add_marker("slow")
    num_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -num_slow[item.path])


def pytest_collection_finish() -> None:
    """What all the modules made stays for good: neither Python's collector nor one who looks for an object among all
    that there are goes through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """What stands in for torch's own while something runs is gone afterwards: the next test would meet it."""
    yield
    modules = sys.modules.get("torch.nn.modules.module")
    if modules is not None and modules._has_any_global_hook():
        kept = [one for name, one in vars(modules).items() if name.startswith("_global_") and one]
        for hooks in kept:
            if isinstance(hooks, dict):
                hooks.clear()
        pytest.fail(f"{item.nodeid} left hooks on every module: {kept}")
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        pytest.fail(f"{item.nodeid} left a process group")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the commands keep for their next call is kept here, not in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet as a hub has it. Do not write into it."""
    from tests import tiny

    return tiny.save_hub_unet(tmp_path_factory.mktemp("hub") / "unet")


@pytest.fixture(scope="session")
def stage_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data set, a UNet and an untrained VAE for whole stages. Do not write into them."""
    from tests import tiny

    return tiny.stage_folder(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="session")
def board_run(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, once resumed run with all statistics, to look at. Do not write into it."""
    from tests.boards import make_run

    place, _ = _made_once(tmp_path_factory, "boards", lambda folder: str(make_run(stage_folder, folder)))
    return Path(place)


@pytest.fixture(scope="session")
def seed_fp16(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the README's first command printed, and the folder it ran in. Do not write into it."""
    from tests.runs import train_seed_fp16

    return _made_once(tmp_path_factory, "seed-fp16", train_seed_fp16)


@pytest.fixture
def own_group() -> Iterator[None]:
    """Some cases of the corpus make a process group of one process."""
    import torch

    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Any, Path]:
    """What `make` returned for a folder of this name; several test processes share it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, result = shared / name, shared / f"{name}.json"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            folder.mkdir()
            result.write_text(json.dumps(make(folder)))
    return json.loads(result.read_text()), folder


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends a test that waits for something that never comes."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError("waited for 30 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
