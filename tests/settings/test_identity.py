"""The model hash: what the stages prove. It must stay what it is in people's run folders."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shadowlab.errors import UserError
from shadowlab.settings import Config, describe_keys, load_config
from shadowlab.settings.keys import key

KEYS = {one.name: one for one in describe_keys()}

# Recorded before the keys were marked.
HASHES = {
    "1c9e362382d0": {"preset": "tiny"},
    "6d0679c67acb": {"preset": "sdxl-4xh100"},
    "dae9445e0fde": {"preset": "sdxl", "assignments": ["model.weights=random"]},
    "f22b7418c23b": {"preset": "seed-fp16", "options": {"allow_unsafe": True}},
    "454c4ec91bb4": {"assignments": ["precision=bf16", "data.image_size=64"]},
}


@pytest.mark.parametrize("wanted", HASHES)
def test_a_model_hash_stays_what_it_was(wanted: str) -> None:
    assert load_config(**HASHES[wanted]).model_hash() == wanted  # type: ignore[arg-type]


def test_the_hash_of_local_weights_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path, because the path itself enters."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w" / "unet").mkdir(parents=True)
    (tmp_path / "w" / "unet" / "model.safetensors").write_bytes(b"abc")
    (tmp_path / "w" / "config.json").write_bytes(b"{}")
    assert load_config(assignments=["model.weights=w"]).model_hash() == "e33c0e1dbeac"
    assert load_config(assignments=["model.weights=w", "model.vae=same"]).model_hash() == "bcb0e67a836c"


def test_what_decides_the_model_decides_the_hash() -> None:
    """Every such key changes it, and no other does."""
    other: dict[str, Any] = {
        "integer": 64,
        "number": 0.125,
        "string": "x",
        "true or false": True,
        "number or null": 0.5,
    }
    plain = load_config(assignments=["allow_unsafe=true"])
    for name, one in KEYS.items():
        kind = "list" if one.type.startswith("list") else one.type
        value = one.choices[-1] if one.choices else other.get(kind)
        value = 7 if name == "distributed.hang_seconds" else value
        if value is None or value == one.default or name == "allow_unsafe":
            continue
        changed = load_config(assignments=["allow_unsafe=true", f"{name}={json.dumps(value)}"])
        assert (changed.model_hash() != plain.model_hash()) == one.in_model_hash, name


def test_a_young_key_enters_the_hash_only_where_it_was_changed() -> None:
    class Young(Config):
        flavour: str = key("plain", decides="model", hashed_if_changed=True)
        """A key that older runs did not have."""

    assert Young().model_hash() == Config().model_hash()
    assert Young(flavour="hot").model_hash() != Config().model_hash()


def test_names_in_the_hash_do_not_collide() -> None:
    """Keys outside the section `model` enter by their last name."""
    outside = [name.split(".")[-1] for name, one in KEYS.items() if one.in_model_hash and one.section != "model"]
    assert len(set(outside) | {"model", "files"}) == len(outside) + 2


@pytest.mark.parametrize(
    "assignment",
    [
        "model.architecture=sdxl",
        "model.weights=./folder",
        "model.vae=./folder",
        "data.image_size=64",
        "precision=bf16",
        "task=another",
        "train.trainable=[conv_in.*]",
    ],
)
def test_another_model_needs_another_proof(assignment: str) -> None:
    assert load_config(assignments=[assignment]).model_hash() != load_config().model_hash()


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=1",
        "device=cpu",
        "output_dir=x",
        "train.max_steps=7",
        "data.path=x",
        "checkpoint.keep_last=1",
        "model.channels_last=true",
        "model.compile=true",
        "optimizer.fused=false",
    ],
)
def test_another_run_of_the_same_model_does_not(assignment: str) -> None:
    assert load_config(assignments=[assignment]).model_hash() == load_config().model_hash()


def test_local_weights_enter_the_proof_to_their_last_byte(tmp_path: Path) -> None:
    """Weights differ behind the first MiB, too."""
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir()
    config = load_config(assignments=[f"model.weights={tmp_path}"])
    content = bytearray(3 << 20)
    hashes = []
    for place in (None, 0, len(content) - 1):
        if place is not None:
            content[place] = 1
        file.write_bytes(content)
        os.utime(file, ns=(len(hashes), len(hashes)))  # file systems may be coarse
        hashes.append(config.model_hash())
    assert len(set(hashes)) == 3
    assert config.model_hash() == hashes[-1]


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    config = load_config(assignments=[f"model.weights={tmp_path}"])
    first = config.model_hash()
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("read again"))
    assert config.model_hash() == first


def test_weights_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read \(No such file"):
        load_config(assignments=[f"model.weights={tmp_path}"]).model_hash()
