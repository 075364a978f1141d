"""Checkpoints: what comes back is what went in, bit for bit; what is broken is neither written nor read."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from shadowlab.errors import StageFailedError, UserError
from shadowlab.models.surgery import remove_cross_attention
from shadowlab.training import checkpoint_files
from shadowlab.training.checkpoint import load_checkpoint, save_checkpoint
from shadowlab.training.checkpoint_files import complete_checkpoints, newest_sound_checkpoint, remove_unfinished
from shadowlab.training.trainee import Trainee
from tests import tiny
from tests.training.test_step import assert_equal, everything, take_step


def save(folder: Path, trainee: Trainee, step: int = 2, keep_last: int = 3) -> Path:
    return save_checkpoint(folder, trainee, step=step, position=4 * step, identity={"a": 1}, keep_last=keep_last)


@pytest.fixture
def trainee(hub_folder: Path) -> Trainee:
    trainee = tiny.trainee_of(hub_folder)
    for step in range(2):
        take_step(trainee, step)
    return trainee


def predicted(unet: Any) -> Tensor:
    batch = tiny.encoded_batch([0, 1])
    with torch.no_grad():
        return tiny.predicted(unet.eval(), batch, torch.full((2,), 0.3))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp16-pure"])
def test_round_trip_is_exact(hub_folder: Path, tmp_path: Path, precision: str) -> None:
    words = (f"precision={precision}", "allow_unsafe=true", "optimizer.eps=1e-4")
    trainee = tiny.trainee_of(hub_folder, *words)
    for step in range(2):
        take_step(trainee, step)
    path = save(tmp_path, trainee)
    again = tiny.trainee_of(hub_folder, *words)
    state = load_checkpoint(path, again)
    assert (state["step"], state["position"], state["seed"]) == (2, 8, 0)
    assert_equal(everything(again), everything(trainee))
    assert take_step(again, 2) == take_step(trainee, 2)
    assert_equal(everything(again), everything(trainee))
    if trainee.scaler is not None and again.scaler is not None:
        assert again.scaler.state_dict() == trainee.scaler.state_dict()


@pytest.mark.parametrize("part", ["unet", "ema"])
def test_diffusers_loads_it(trainee: Trainee, tmp_path: Path, part: str) -> None:
    path = save(tmp_path, trainee)
    loaded: Any = UNet2DConditionModel.from_pretrained(path / part)
    assert loaded.config.in_channels == 9
    assert loaded.config.class_embed_type == "projection"
    remove_cross_attention(loaded)  # cannot be said in config.json
    if part == "ema":
        assert trainee.ema is not None
        trainee.ema.copy_to(trainee.unet.parameters())
    assert torch.equal(predicted(loaded), predicted(trainee.unet))


@pytest.mark.parametrize("part", ["unet", "ema"])
def test_it_serves_as_weights(trainee: Trainee, tmp_path: Path, part: str) -> None:
    path = save(tmp_path, trainee)
    assert torch.equal(predicted(tiny.shadow_unet(path)), predicted(trainee.unet))
    if part == "ema":
        assert trainee.ema is not None
        trainee.ema.copy_to(trainee.unet.parameters())
    assert torch.equal(predicted(tiny.shadow_unet(path / part)), predicted(trainee.unet))


def test_without_ema(hub_folder: Path, tmp_path: Path) -> None:
    trainee = tiny.trainee_of(hub_folder, "train.ema_decay=null")
    take_step(trainee, 0)
    path = save(tmp_path, trainee)
    assert not (path / "ema").exists()
    again = tiny.trainee_of(hub_folder, "train.ema_decay=null")
    load_checkpoint(path, again)
    assert_equal(everything(again), everything(trainee))
    with pytest.raises(UserError, match=r"has no EMA; set train\.ema_decay=null"):
        load_checkpoint(path, tiny.trainee_of(hub_folder))


def test_no_pickle(trainee: Trainee, tmp_path: Path) -> None:
    path = save(tmp_path, trainee)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files if file.name != "COMPLETE"} == {".safetensors", ".json"}
    assert not [file for file in files if b"cpickle" in file.read_bytes()[:64] or file.read_bytes()[:2] == b"\x80\x04"]


# --- frozen parameters -------------------------------------------------------------------------------------------


def frozen_trainee(hub_folder: Path, *words: str) -> Trainee:
    """Only self-attention trains."""
    return tiny.trainee_of(hub_folder, *words, trains=lambda name: ".attn1." in name)


@pytest.mark.parametrize("words", [(), ("precision=fp16-pure", "allow_unsafe=true", "optimizer.eps=1e-4")])
def test_frozen_parameters_are_in_the_folder_and_cost_nothing_else(
    hub_folder: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    trainee = frozen_trainee(hub_folder, *words)
    first = tiny.weights_of(trainee)
    for step in range(2):
        take_step(trainee, step)
    names, every = set(trainee.parameters()), {name for name, _ in trainee.unet.named_parameters()}
    assert 0 < len(names) < len(every)
    assert trainee.ema is not None and len(trainee.ema.shadow_params) == len(names)
    assert set(trainee.optimizer.state) == set(trainee.parameters().values())

    path = save(tmp_path, trainee)
    raw, averaged = (load_file(path / part / checkpoint_files.WEIGHTS_NAME) for part in ("unet", "ema"))
    assert raw.keys() == averaged.keys() == every
    assert {name.rpartition("/")[0] for name in load_file(path / "optimizer.safetensors")} == names
    for name in every - names:
        assert torch.equal(raw[name], first[name]) and torch.equal(averaged[name], first[name])
    for name in names:
        assert not torch.equal(raw[name], first[name]) and not torch.equal(averaged[name], raw[name])
    for part in ("unet", "ema"):
        UNet2DConditionModel.from_pretrained(path / part)

    again = frozen_trainee(hub_folder, *words)
    load_checkpoint(path, again)
    assert_equal(everything(again), everything(trainee))
    assert take_step(again, 2) == take_step(trainee, 2)
    assert_equal(everything(again), everything(trainee))


def test_other_parameters_that_train_are_refused(trainee: Trainee, hub_folder: Path, tmp_path: Path) -> None:
    everywhere = save(tmp_path / "a", trainee)
    with pytest.raises(
        UserError, match=r"holds a state of \S+, which is no trained parameter of the model; resume with"
    ):
        load_checkpoint(everywhere, frozen_trainee(hub_folder))
    part = frozen_trainee(hub_folder)
    take_step(part, 0)
    with pytest.raises(UserError, match=r"has no state of \S+, which is trained; resume with"):
        load_checkpoint(save(tmp_path / "b", part, 1), tiny.trainee_of(hub_folder))


def test_the_precision_must_be_the_same_unless_it_is_to_be_changed(
    trainee: Trainee, hub_folder: Path, tmp_path: Path
) -> None:
    path = save(tmp_path, trainee)
    half = tiny.trainee_of(hub_folder, "precision=fp16-pure", "allow_unsafe=true", "optimizer.eps=1e-4")
    with pytest.raises(
        UserError, match=r"is torch\.float32, the model has torch\.float16; take the precision that the run"
    ):
        load_checkpoint(path, half)
    load_checkpoint(path, half, converts=True)
    state = half.optimizer.state[half.unet.conv_in.weight]
    assert {state["exp_avg"].dtype, half.unet.conv_in.weight.dtype} == {torch.float16}
    wanted = trainee.optimizer.state[trainee.unet.conv_in.weight]["exp_avg"].half()
    assert torch.equal(state["exp_avg"], wanted)


# --- incomplete --------------------------------------------------------------------------------------------------


def test_only_complete_ones_count(trainee: Trainee, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, trainee, step, keep_last=9)
    paths = complete_checkpoints(tmp_path)
    assert [path.name for path in paths] == [f"step-{step:08d}" for step in (1, 2, 3, 4, 5)]
    (paths[1] / "COMPLETE").unlink()
    (paths[2] / "COMPLETE").write_text('{"state.json": ')
    weights = paths[3] / "unet" / checkpoint_files.WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1])
    (paths[4] / "optimizer.safetensors").unlink()
    (tmp_path / ".step-00000009.partial").mkdir()
    assert complete_checkpoints(tmp_path) == [paths[0]]


@pytest.mark.parametrize("content", ["", "[]", "7", '"x"', "null", "{}"])
def test_a_damaged_marker_is_no_marker(trainee: Trainee, tmp_path: Path, content: str) -> None:
    path = save(tmp_path, trainee)
    (path / "COMPLETE").write_text(content)
    assert complete_checkpoints(tmp_path) == []


def test_the_newest_are_kept(trainee: Trainee, tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        save(tmp_path, trainee, step, keep_last=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000015", "step-00000100"]


def test_a_broken_one_does_not_push_out_a_good_one(trainee: Trainee, tmp_path: Path) -> None:
    save(tmp_path, trainee, 1, keep_last=2)
    (save(tmp_path, trainee, 2, keep_last=2) / "optimizer.safetensors").unlink()
    save(tmp_path, trainee, 3, keep_last=2)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000001", "step-00000003"]


def test_saving_a_step_again_replaces_it(trainee: Trainee, tmp_path: Path) -> None:
    save(tmp_path, trainee)
    take_step(trainee, 2)
    path = save(tmp_path, trainee)
    assert complete_checkpoints(tmp_path) == [path]
    assert torch.equal(predicted(tiny.shadow_unet(path)), predicted(trainee.unet))


# --- never bad ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["parameter", "EMA", "optimizer"])
def test_nothing_bad_is_written(trainee: Trainee, tmp_path: Path, place: str) -> None:
    good = save(tmp_path, trainee, 1)
    name, parameter = next((n, p) for n, p in trainee.parameters().items() if n == "conv_out.bias")
    index = list(trainee.parameters()).index(name)
    assert trainee.ema is not None
    spoiled = {
        "parameter": parameter.data,
        "EMA": trainee.ema.shadow_params[index],
        "optimizer": trainee.optimizer.state[parameter]["exp_avg_sq"],
    }[place]
    spoiled[0] = float("inf")
    with pytest.raises(StageFailedError, match=rf"{place}.*conv_out\.bias.*not finite.*untouched") as caught:
        save(tmp_path, trainee, 2)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == [good]


@pytest.mark.parametrize("victim", ["save_file", "_described", "_sync", "the marker"])
def test_a_full_disk_leaves_the_earlier_ones(
    trainee: Trainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    good = save(tmp_path, trainee, 1, keep_last=1)
    write = checkpoint_files.replace_text

    def full(path: Any = None, *rest: Any, **how: Any) -> None:
        if victim == "the marker" and path.name != "COMPLETE":
            return write(path, *rest, **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "replace_text" if victim == "the marker" else victim, full)
    with pytest.raises(UserError, match=r"No space left.*earlier checkpoints stay, free the disk or make it writable"):
        save(tmp_path, trainee, 2, keep_last=1)
    monkeypatch.undo()
    assert complete_checkpoints(tmp_path) == [good]
    assert list(tmp_path.iterdir()) == [good]


def test_too_little_space_is_known_before_writing(
    trainee: Trainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2**20))
    monkeypatch.setattr(checkpoint_files, "save_file", None)  # nothing is tried
    with pytest.raises(UserError, match=r"checkpoint not written \(it takes 1 MiB, 1 MiB are free"):
        save(tmp_path, trainee)


def test_a_damaged_newer_one_does_not_push_out_what_was_just_written(trainee: Trainee, tmp_path: Path) -> None:
    """A resume passed over step 4 and went on from 2."""
    save(tmp_path, trainee, 2)
    _flip(save(tmp_path, trainee, 4) / "optimizer.safetensors")
    save(tmp_path, trainee, 3, keep_last=1)
    assert newest_sound_checkpoint(tmp_path, lambda _: None) == tmp_path / "step-00000003"


def test_those_kept_for_good_outlive_the_last(trainee: Trainee, tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        save_checkpoint(tmp_path, trainee, step=step, position=0, identity={}, keep_last=1, keep_every=10)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000010", "step-00000020", "step-00000025"]


# --- refusals on the way back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["state.json", "optimizer.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_a_damaged_file_is_named_with_the_way_out(
    trainee: Trainee, hub_folder: Path, tmp_path: Path, file: str
) -> None:
    """Same size, other bytes: a bad disk."""
    path = save(tmp_path, trainee)
    (path / file).write_bytes(b"\xff" * (path / file).stat().st_size)
    assert complete_checkpoints(tmp_path) == [path]
    with pytest.raises(UserError, match=r"damaged checkpoint.*remove it to use the one before") as caught:
        load_checkpoint(path, tiny.trainee_of(hub_folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda path: _flip(path / "optimizer.safetensors"),
            r"optimizer\.safetensors is not what was written",
        ),
        (lambda path: _flip(path / "state.json"), r"state\.json is not what was written"),
        (lambda path: (path / "unet" / "config.json").unlink(), r"unet/config\.json is missing"),
        (lambda path: (path / "state.json").write_text("{}"), r"state\.json has 2 bytes instead of"),
        (lambda path: (path / "COMPLETE").write_text("{"), r"incomplete \(no readable COMPLETE\)"),
        (lambda path: (path / "COMPLETE").write_text('{"state.json": 5}'), "incomplete"),
    ],
)
def test_a_tampered_one_is_passed_over_and_reported(
    trainee: Trainee, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    good, bad = save(tmp_path, trainee, 1), save(tmp_path, trainee, 2)
    damage(bad)
    reported: list[str] = []
    assert newest_sound_checkpoint(tmp_path, reported.append) == good
    assert len(reported) == 1 and re.search(says, reported[0]) and "the one before is used" in reported[0]
    assert bad.exists()
    damage(good)
    assert newest_sound_checkpoint(tmp_path, reported.append) is None


def _flip(file: Path) -> None:
    """One bit in the middle: the size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_what_a_killed_process_left_is_cleared_away(trainee: Trainee, tmp_path: Path) -> None:
    good, renamed = save(tmp_path, trainee, 1), save(tmp_path, trainee, 2)
    (renamed / "COMPLETE").unlink()
    (renamed / ".COMPLETE.4242.tmp").write_text("{")  # it was killed while it wrote the marker
    partial = Path(shutil.copytree(good, tmp_path / ".step-00000003.partial"))
    assert sorted(remove_unfinished(tmp_path)) == [partial, renamed]
    assert list(tmp_path.iterdir()) == [good]


def test_code_in_a_file_is_never_run(trainee: Trainee, hub_folder: Path, tmp_path: Path) -> None:
    """A pickle next to the weights, or in their place, is data that nobody asked for."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    path = save(tmp_path, trainee)
    for name in ("unet/diffusion_pytorch_model.bin", "optimizer.pt", "random_states_0.pkl"):
        (path / name).write_bytes(pickle.dumps(Bomb()))
    load_checkpoint(path, tiny.trainee_of(hub_folder))
    (path / "optimizer.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="damaged checkpoint"):
        load_checkpoint(path, tiny.trainee_of(hub_folder))
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="damaged checkpoint"):
        load_checkpoint(path, tiny.trainee_of(hub_folder))
    with pytest.raises(UserError):
        tiny.shadow_unet(path / "unet")
    assert not (tmp_path / "run").exists()


def test_another_model_is_refused(trainee: Trainee, hub_folder: Path, tmp_path: Path) -> None:
    path = save(tmp_path, trainee)
    wider = tiny.save_hub_unet(tmp_path / "wider", block_out_channels=(8, 24))
    with pytest.raises(UserError, match=r"block_out_channels is \[8, 16\], the model has \[8, 24\]"):
        load_checkpoint(path, tiny.trainee_of(wider))
    deeper = tiny.save_hub_unet(tmp_path / "deeper", transformer_layers_per_block=(1, 2))
    with pytest.raises(UserError, match=r"transformer_layers_per_block is \[1, 1\], the model has \[1, 2\]"):
        load_checkpoint(path, tiny.trainee_of(deeper))


def test_state_is_plain_json(trainee: Trainee, tmp_path: Path) -> None:
    state = json.loads((save(tmp_path, trainee) / "state.json").read_text())
    assert state["identity"] == {"a": 1}
    assert state["ema_updates"] == 2
    assert state["scaler"] is None


def test_a_copy_elsewhere_loads(trainee: Trainee, hub_folder: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "a", trainee)
    shutil.copytree(path, tmp_path / "b" / path.name)
    again = tiny.trainee_of(hub_folder)
    load_checkpoint(complete_checkpoints(tmp_path / "b")[0], again)
    assert_equal(everything(again), everything(trainee))
