"""Shared by all tests: reproducible properties, and small models that are made once."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers with two threads each wait for one another

import pytest
from hypothesis import settings

from tests import tiny

settings.register_profile("shadowlab", deadline=None, derandomize=True)
settings.load_profile("shadowlab")


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet as a hub has it. Do not write into it."""
    return tiny.save_hub_unet(tmp_path_factory.mktemp("hub") / "unet")


@pytest.fixture(scope="session")
def stage_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data set, a UNet and an untrained VAE for whole stages. Do not write into them."""
    return tiny.stage_folder(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="session")
def board_run(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, once resumed run with all statistics, to look at. Do not write into it."""
    from tests.boards import make_run

    return make_run(stage_folder, tmp_path_factory.mktemp("boards"))
