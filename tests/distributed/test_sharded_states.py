"""Optimizer states of several processes under FSDP2: saved whole, restored in shards, or refused."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from shadowlab.training.checkpoint import load_checkpoint
from tests import warm
from tests.distributed.sharded_states import OPTIMIZERS, save, take_steps, trainee_with
from tests.runs import BINARY

FILES = ("optimizer.safetensors", "unet/diffusion_pytorch_model.safetensors", "ema/diffusion_pytorch_model.safetensors")


def test_states_of_any_optimizer_in_two_sharded_processes(hub_folder: Path, tmp_path: Path) -> None:
    words = [str(BINARY / "torchrun"), "--nproc-per-node", "2", "--master-port", "29523"]
    words += ["-m", "tests.distributed.sharded_states", str(hub_folder), str(tmp_path)]
    done = warm.run(words, timeout=240)
    assert done.returncode == 0, done.stderr

    for name, make in OPTIMIZERS.items():
        straight, resumed = tmp_path / name / "step-00000005", tmp_path / f"{name} resumed" / "step-00000005"
        for file in (*FILES, "optimizer.json"):
            assert (straight / file).read_bytes() == (resumed / file).read_bytes(), (name, file)
        alone = trainee_with(hub_folder, make)
        load_checkpoint(tmp_path / name / "step-00000003", alone)  # one process goes on with what two have left
        take_steps(alone, range(3, 5))
        path = save(tmp_path / f"{name} alone", alone, 5)
        for file in FILES:
            torch.testing.assert_close(load_file(path / file), load_file(straight / file))
        assert (path / "optimizer.json").read_bytes() == (straight / "optimizer.json").read_bytes()

    for rank in (0, 1):
        text = (tmp_path / f"refused-{rank}.txt").read_text()
        assert text.startswith("True optimizer state conv_in.weight/scale is another in each process and no shard")
        assert text.endswith("use distributed.strategy=ddp with this optimizer")
    assert not (tmp_path / "refused").exists()
