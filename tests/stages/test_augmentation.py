"""Augmentation in whole stages: train alone changes samples, and a resumed run goes on with the same draws."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diagnostics.records.lines import read_records
from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import UserError
from shadowlab.runs.folder import RunFolder
from shadowlab.runs.resume import resumed_config
from shadowlab.session import Session
from shadowlab.settings.schema import Config
from shadowlab.stages.check_forward import run_check_forward
from shadowlab.stages.overfit import run_overfit
from shadowlab.stages.train.train import run_train
from shadowlab.tasks.shadow.augmentation import ShadowAugmentation
from shadowlab.tasks.shadow.samples import Sample
from shadowlab.views.page.page import facts
from shadowlab.views.page.run_view import RunView
from tests import tiny

ALONE = SingleProcess(torch.device("cpu"))
SHORT = ("train.batch_size=2", "train.max_steps=6", "train.validate_every=3", "checkpoint.every_steps=3")
CHANGED = tuple(
    f"data.augment.{words}" for words in ("flip=0.5", "brightness=0.3", "blur=1.0", "label_noise_degrees=1")
)


def session_of(config: Config, name: str, *, resume: bool = False) -> Session:
    run = RunFolder.reopen(config, name) if resume else RunFolder.create(config, name)
    return Session.open(config, run, ALONE, Reporter(active=False))


def weights(run: RunFolder) -> dict[str, Tensor]:
    return load_file(run.checkpoints / "step-00000006" / "unet" / "diffusion_pytorch_model.safetensors")


def test_train_changes_each_sample_of_its_stream_and_a_resume_goes_on(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a position: what validation sees passes by."""
    positions: list[int] = []
    original = ShadowAugmentation.sample

    def noting(self: ShadowAugmentation, sample: Sample, position: int) -> Sample:
        positions.append(position)
        return original(self, sample, position)

    monkeypatch.setattr(ShadowAugmentation, "sample", noting)
    whole = session_of(tiny.stage_config(stage_folder, tmp_path, *SHORT, *CHANGED), "whole")
    run_train(whole)
    assert positions == list(range(12))
    half = session_of(tiny.stage_config(stage_folder, tmp_path, *SHORT, *CHANGED, "train.max_steps=3"), "half")
    run_train(half)
    config = resumed_config(half.run, source=None, options={"train.max_steps": 6}, assignments=[])
    assert config.data.augment == whole.config.data.augment
    run_train(session_of(config, "half", resume=True), resume=True)
    assert positions == list(range(12)) * 2
    wanted, got = weights(whole.run), weights(half.run)
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]
    with pytest.raises(
        UserError, match=r"data\.augment\.flip was 0\.5 .* and is 0\.4 now, which would make it another"
    ):
        resumed_config(half.run, source=None, options={}, assignments=["data.augment.flip=0.4"])
    said = "flip 0.5, brightness 0.3, blur 1, label noise degrees 1"
    [header, *_] = read_records(whole.run.metrics)
    assert header["augmentation"] == said and ("Augmentation", said) in facts(RunView.read(whole.run.path))


def test_check_forward_and_overfit_see_samples_as_they_are(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fourth condition, too."""

    def refusing(self: ShadowAugmentation, sample: Sample, position: int) -> Sample:
        raise AssertionError("a sample was changed")

    monkeypatch.setattr(ShadowAugmentation, "sample", refusing)
    words = (
        "model.weights=random",
        "model.vae=embedded",
        "data.path=embedded",
        "data.image_size=64",
        "overfit.min_r2=-1e9",
        "task_options.min_soft_iou=0",
        "overfit.num_samples=3",
    )
    config = tiny.stage_config(stage_folder, tmp_path, *words, *CHANGED, "data.augment.intensity=0.5")
    assert run_check_forward(session_of(config, "checked")).passed
    assert run_overfit(session_of(config, "overfit")).passed
    with pytest.raises(AssertionError, match="a sample was changed"):
        run_train(session_of(config, "train"))
