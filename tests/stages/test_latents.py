"""train and overfit on the latent cache: the same run without the VAE in its steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diagnostics.records.lines import read_records
from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import StageStoppedError
from shadowlab.latents.cache import entry_path
from shadowlab.latents.reading import LatentDataset
from shadowlab.models.vae import ImageVae
from shadowlab.runs.folder import RunFolder
from shadowlab.runs.resume import resumed_config
from shadowlab.session import Session
from shadowlab.settings.schema import Config
from shadowlab.stages.overfit import run_overfit
from shadowlab.stages.train import train
from shadowlab.stages.train.train import run_train
from shadowlab.training.telemetry import Telemetry
from tests import tiny
from tests.latents.filled import cached_config, copied, encode, source_of

ALONE = SingleProcess(torch.device("cpu"))
SHORT = ("train.batch_size=1", "train.max_steps=7", "train.validate_every=7", "checkpoint.every_steps=3")


@pytest.fixture(scope="module")
def filled(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    root = tmp_path_factory.mktemp("latents")
    folders = copied(stage_folder, root)
    encode(cached_config(folders, root))
    return folders, root


def trained(config: Config, name: str, *, resume: bool = False) -> RunFolder:
    run = RunFolder.reopen(config, name) if resume else RunFolder.create(config, name)
    run_train(Session.open(config, run, ALONE, Reporter(active=False)), resume=resume)
    return run


def saved(run: RunFolder) -> dict[str, Tensor]:
    [folder] = run.checkpoints.glob("step-00000007")
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.fixture(scope="module")
def pictures_run(filled: tuple[dict[str, Path], Path]) -> RunFolder:
    """The run that encodes in each step."""
    return trained(tiny.stage_config(filled[0], filled[1] / "runs", *SHORT), "pictures")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_run_is_the_same_and_its_steps_need_no_vae(
    filled: tuple[dict[str, Path], Path], pictures_run: RunFolder, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Bit for bit, the samples being encoded one at a time in both."""
    validated: list[int] = []
    original_validate, original_encode = train.validate, ImageVae.encode

    def validate(*arguments: Any, **named: Any) -> Any:
        validated.append(arguments[4])
        return original_validate(*arguments, **named)

    def encode_before_the_loop(self: ImageVae, images: Tensor) -> Tensor:
        assert not validated, "the VAE was called in a step"
        return original_encode(self, images)

    monkeypatch.setattr(train, "validate", validate)
    monkeypatch.setattr(ImageVae, "encode", encode_before_the_loop)
    run = trained(cached_config(*filled, *SHORT, f"data.num_workers={workers}"), f"latents-{workers}")
    assert validated == [0, 7]
    wanted, got = saved(pictures_run), saved(run)
    assert wanted.keys() == got.keys()
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]


def test_the_order_and_the_noise_of_a_batch_are_the_same(
    filled: tuple[dict[str, Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of larger batches the latents agree to rounding, for a convolution of several samples rounds otherwise."""
    seen: list[EncodedBatch] = []
    original = Telemetry.step

    def noting(self: Any, batches: Any, *arguments: Any, **named: Any) -> Any:
        seen.extend(batches)
        return original(self, batches, *arguments, **named)

    monkeypatch.setattr(Telemetry, "step", noting)
    words = ("train.max_steps=2", "train.batch_size=2", "train.gradient_accumulation_steps=2")
    trained(tiny.stage_config(filled[0], filled[1] / "runs", *words), "batches-of-pictures")
    trained(cached_config(*filled, *words), "batches-of-latents")
    assert len(seen) == 8
    for first, second in zip(seen[:4], seen[4:], strict=True):
        assert first.ids == second.ids and torch.equal(first.positions, second.positions)
        for name, tensor in first.tensors().items():
            torch.testing.assert_close(second.tensors()[name], tensor, rtol=0, atol=1e-4)


def test_a_run_may_take_the_cache_up_on_resume(filled: tuple[dict[str, Path], Path], pictures_run: RunFolder) -> None:
    config = tiny.stage_config(filled[0], filled[1] / "runs", *SHORT, "train.max_steps=3")
    run = trained(config, "resumed")
    words = {"train.max_steps": 7, "data.latents": str(filled[1] / "latents")}
    trained(resumed_config(run, source=None, options=words, assignments=[]), "resumed", resume=True)
    wanted, got = saved(pictures_run), saved(run)
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]


def test_an_entry_that_breaks_during_the_run_stops_it(
    filled: tuple[dict[str, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad disk in the middle of the run: never a bad latent in a step."""
    folders = copied(filled[0], tmp_path)
    encode(cached_config(folders, tmp_path))
    config = cached_config(folders, tmp_path, *SHORT)
    source = source_of(config)
    assert isinstance(source.dataset, LatentDataset)
    keys = {name: source.dataset._keys[i] for i, name in enumerate(source.dataset._dataset.ids)}
    original = Telemetry.step

    def breaking(self: Any, batches: Any, place: Any, **named: Any) -> Any:
        outcome = original(self, batches, place, **named)
        if place.step == 4:
            for key in keys.values():
                file = entry_path(tmp_path / "latents", key["data"])
                file.write_bytes(file.read_bytes()[:-4] + b"\0\0\xc0\x7f")  # a NaN at the end
        return outcome

    monkeypatch.setattr(Telemetry, "step", breaking)
    with pytest.raises(StageStoppedError, match=r"step 6: sample img_0000\d: \S+\.safetensors: damaged: .*data encode"):
        trained(config, "breaks")
    checkpoints = tmp_path / "runs" / "breaks" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000003"]


def test_overfit_memorises_what_train_will_read(
    filled: tuple[dict[str, Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EncodedBatch] = []
    original = Telemetry.step

    def noting(self: Any, batches: Any, place: Any) -> Any:
        seen.extend(batches)
        return original(self, batches, place)

    def read(self: LatentDataset, i: int) -> Any:
        sample = original_read(self, i)
        sample.latents["data"].fill_(float(i))
        return sample

    original_read = LatentDataset.__getitem__
    # It would see that they are not the samples' own.
    monkeypatch.setattr("shadowlab.stages.overfit.overfit.first_stranger", lambda *_: None)
    monkeypatch.setattr(Telemetry, "step", noting)
    monkeypatch.setattr(LatentDataset, "__getitem__", read)
    words = ("overfit.min_r2=-1e9", "overfit.min_soft_iou=0", "overfit.num_samples=3", "overfit.batch_size=4")
    config = cached_config(*filled, *words)
    run = RunFolder.create(config, "overfit")
    assert run_overfit(Session.open(config, run, ALONE, Reporter(active=False))).passed
    assert len(seen) == 2
    for batch in seen:
        assert [f"img_{int(value):05d}" for value in batch.data[:, 0, 0, 0]] == batch.ids


def test_the_wait_is_recorded_and_drawn(pictures_run: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = [record for record in read_records(pictures_run.metrics) if record["kind"] == "train"]
    assert len(records) == 7
    for record in records:
        assert 0 < record["data_wait_share"] < 1
        spent = record["step_seconds"] + record["data_wait_seconds"]
        assert record["data_wait_seconds"] / record["data_wait_share"] >= spent * (1 - 1e-5)  # the encoding is between
    events = EventAccumulator(str(pictures_run.tensorboard))
    events.Reload()
    drawn = [event.value for event in events.Scalars("train/data_wait_share")]
    assert drawn == pytest.approx([record["data_wait_share"] for record in records], rel=1e-5)
