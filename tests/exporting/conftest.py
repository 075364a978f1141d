"""A run's model as a diffusers folder, written once and opened as diffusers does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shadowlab.exporting.diffusers_folder import write_folder
from shadowlab.inference import LoadedModel, open_model
from tests.inference.made import make_run


@pytest.fixture(scope="package")
def run(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(stage_folder, tmp_path_factory.mktemp("exporting") / "runs")


@pytest.fixture(scope="package")
def model(run: Path) -> LoadedModel:
    return open_model(run, device="cpu")


@pytest.fixture(scope="package")
def folder(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `write_folder` makes of it. Do not write into it."""
    place = tmp_path_factory.mktemp("folder")
    assert model.task.exported is not None
    write_folder(model, model.task.exported, place)
    return place


@pytest.fixture(scope="package")
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """diffusers copies a folder's code into this user's cache before it runs it; here into one of its own."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", cache)
        patch.syspath_prepend(cache)
        yield


@pytest.fixture(scope="package")
def pipe(folder: Path, own_modules: None) -> Any:
    return open_pipeline(folder)


def open_pipeline(folder: Path, **options: Any) -> Any:
    """As a user loads it."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe
