"""What stands beside each key of the configuration, and what is derived from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowlab.settings import Config, describe_keys, describe_sections, json_schema, load_config, values
from shadowlab.settings.files import presets_folder
from shadowlab.settings.keys import Section, key

KEYS = {one.name: one for one in describe_keys()}

# Recorded before the keys were marked: hashes in people's run folders, by which stages count as passed.
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


def test_every_key_has_a_text_and_its_marks() -> None:
    assert KEYS.keys() == values(Config()).keys()
    assert [name for name, one in KEYS.items() if not one.text.endswith(".")] == []
    assert all(describe_sections().values())


def test_a_key_without_marks_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError, match=r"Careless\.depth: declare it with key\(default, decides="):

        class Careless(Section):
            depth: int = 3
            """Blocks."""

    with pytest.raises(ValueError, match="decides='everything' is none of model, numbers"):
        key(3, decides="everything")  # type: ignore[arg-type]


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


@pytest.mark.parametrize("preset", [path.stem for path in presets_folder().glob("*.yaml")])
def test_the_schema_for_editors_knows_what_presets_say(preset: str) -> None:
    properties = json_schema()["properties"]
    content = yaml.safe_load((presets_folder() / f"{preset}.yaml").read_text())
    for name, value in content.items():
        if isinstance(value, dict):
            assert value.keys() <= properties[name]["properties"].keys()
            assert properties[name]["additionalProperties"] is False
        else:
            assert name in properties
    assert json_schema()["additionalProperties"] is False


def test_the_schema_says_what_a_key_may_be() -> None:
    train = json_schema()["properties"]["train"]
    assert train["description"] == "The stage `train`."
    steps = {"default": 200, "description": "Optimizer steps.", "exclusiveMinimum": 0, "type": "integer"}
    assert train["properties"]["max_steps"] == steps
    size = KEYS["data.image_size"]
    assert (size.type, size.limits, size.default) == ("integer", "at least 32, at most 4096, a multiple of 8", 128)
    assert KEYS["optimizer.max_grad_norm"].type == "number or null"
    assert KEYS["distributed.strategy"].type == "one of ddp, fsdp2"
    assert KEYS["validation.timesteps"].limits == "at least 1 of them, each at least 0, each less than 1"
    assert KEYS["model.weights"].to_json() == {
        "name": "model.weights",
        "type": "string",
        "limits": "",
        "choices": (),
        "default": "random",
        "text": "Weights of the UNet: `random`, a local folder in diffusers' layout, or a hub id.",
        "examples": ("stabilityai/stable-diffusion-xl-base-1.0", "my-unet/"),
        "decides": "model",
        "option": "--weights",
        "hashed_if_changed": False,
        "in_model_hash": True,
    }


def test_the_limits_of_the_schema_are_those_that_loading_keeps() -> None:
    """Those that a validator checks are written down a second time."""
    for name, one in KEYS.items():
        schema = json_schema()["properties"]
        for part in name.split("."):
            schema = schema.get("properties", schema)[part]
        for word, sign in (("minimum", -1), ("maximum", 1)):
            if word not in schema:
                continue
            step = schema.get("multipleOf", 1)
            limit = schema[word]
            load_config(assignments=[f"{name}={limit}"])
            with pytest.raises(Exception, match=name.replace(".", r"\.")):
                load_config(assignments=[f"{name}={limit + sign * step}"])
        assert one.default == values(Config())[name]
