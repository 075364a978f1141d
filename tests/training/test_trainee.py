"""Options reach what they name: none is parsed, stored in config.yaml and then ignored."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shadowlab.console.reporter import Reporter
from shadowlab.data import loader
from shadowlab.distributed.processes import SingleProcess
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.stages.train.train import run_train
from shadowlab.tasks.shadow.task import ShadowTask
from shadowlab.training.trainee import build_trainee, build_unet
from tests import tiny

ALONE = SingleProcess(torch.device("cpu"))
OPTIONS = (
    "optimizer.learning_rate=3e-4",
    "optimizer.beta1=0.7",
    "optimizer.beta2=0.8",
    "optimizer.eps=1e-5",
    "optimizer.weight_decay=0.25",
    "train.ema_decay=0.875",
    "train.max_consecutive_skips=7",
    "model.gradient_checkpointing=true",
    "model.channels_last=true",
    "optimizer.fused=false",
)


def test_optimizer_average_and_checkpointing_are_as_configured(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.stage_config(stage_folder, tmp_path, *OPTIONS)
    unet = build_unet(config, ShadowTask.spec, ALONE.device)
    trainee = build_trainee(
        config, unet, ShadowTask.objective, ALONE, config.optimizer, 9, ema_decay=config.train.ema_decay
    )
    (group,) = trainee.optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-4, (0.7, 0.8), 1e-5, 0.25)
    assert {id(p) for p in group["params"]} == {id(p) for p in unet.parameters()}
    assert trainee.ema is not None and trainee.ema.decay == 0.875
    assert group["fused"] is None
    assert unet.is_gradient_checkpointing
    assert unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    plain = build_unet(tiny.stage_config(stage_folder, tmp_path), ShadowTask.spec, ALONE.device)
    assert not plain.is_gradient_checkpointing
    assert build_trainee(config, plain, ShadowTask.objective, ALONE, config.optimizer, 9, ema_decay=None).ema is None


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("bf16", True), ("fp16-pure", None)])
def test_adamw_is_fused_where_weights_are_float32(hub_folder: Path, precision: str, fused: bool | None) -> None:
    """In float16 the one kernel computes in float32, and fp16-pure would not be what it is named for."""
    trainee = tiny.trainee_of(hub_folder, f"precision={precision}", "allow_unsafe=true")
    assert trainee.optimizer.param_groups[0]["fused"] is fused


def test_loader_processes_are_as_configured(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AskedError(Exception):
        pass

    def recording(dataset: Any, **settings: Any) -> Any:
        raise AskedError(settings["num_workers"])

    monkeypatch.setattr(loader, "DataLoader", recording)
    config = tiny.stage_config(stage_folder, tmp_path, "data.num_workers=3")
    with pytest.raises(AskedError, match="3"):
        run_train(Session.open(config, RunFolder.create(config, "run"), ALONE, Reporter(active=False)))
