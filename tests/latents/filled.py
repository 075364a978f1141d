"""A latent cache of the tests' small data set, and a copy of the data that may be changed."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from shadowlab.console.reporter import Reporter
from shadowlab.data.sample_set import SampleSet
from shadowlab.distributed.processes import SingleProcess
from shadowlab.latents.encode import EncodeReport, encode_dataset
from shadowlab.settings.schema import Config
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.task import ShadowTask
from shadowlab.training.source import BatchSource, open_source
from tests import tiny


def copied(folders: Mapping[str, Path], to: Path) -> dict[str, Path]:
    """The same data, modification times too, and weights where nothing but these tests writes."""
    return {name: Path(shutil.copytree(folder, to / name)) for name, folder in folders.items()}


def cached_config(folders: dict[str, Path], root: Path, *assignments: str) -> Config:
    """A configuration that reads latents from `root/latents`."""
    return tiny.stage_config(folders, root / "runs", f"data.latents={root / 'latents'}", *assignments)


def encode(config: Config) -> EncodeReport:
    assert config.data.latents is not None
    return encode_dataset(config, Path(config.data.latents), SingleProcess(torch.device("cpu")), Reporter(active=False))


def dataset_and_task(config: Config) -> tuple[SampleSet, ShadowTask]:
    task = open_task(config, torch.device("cpu"))
    return open_dataset(config.data.path, config.data.image_size), task


def source_of(config: Config) -> BatchSource:
    dataset, task = dataset_and_task(config)
    return open_source(config, dataset, task, range(len(dataset)))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
