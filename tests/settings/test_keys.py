"""What is declared with each key of the configuration, and what is derived from it."""

from typing import Annotated

import pytest
import yaml
from pydantic import Field

from shadowlab.settings import Config, describe_keys, describe_sections, json_schema, load_config, values
from shadowlab.settings.files import presets_folder
from shadowlab.settings.keys import Section, key

KEYS = {one.name: one for one in describe_keys()}


def test_every_key_has_a_text_and_its_marks() -> None:
    assert KEYS.keys() == values(Config()).keys()
    assert [name for name, one in KEYS.items() if not one.text.endswith(".")] == []
    assert all(describe_sections().values())


def test_the_options_of_a_task_are_described_likewise() -> None:
    class Options(Section):
        strength: Annotated[float, Field(ge=0, le=1)] = key(0.5, decides="nothing")
        """How much of it."""

    [found] = describe_keys(Options, "task_options.")
    assert (found.name, found.limits) == ("task_options.strength", "at least 0, at most 1")
    assert (found.text, found.default) == ("How much of it.", 0.5)


def test_a_key_without_marks_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError, match=r"Careless\.depth: declare it with key\(default, decides="):

        class Careless(Section):
            depth: int = 3
            """Blocks."""

    with pytest.raises(ValueError, match="decides='everything' is none of model, numbers"):
        key(3, decides="everything")  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", [path.stem for path in presets_folder().glob("*.yaml")])
def test_the_schema_for_editors_knows_what_presets_say(preset: str) -> None:
    properties = json_schema()["properties"]
    content = yaml.safe_load((presets_folder() / f"{preset}.yaml").read_text())
    for name, value in content.items():
        if isinstance(value, dict) and name != "task_options":  # those are the task's own
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
        "text": "Weights of the UNet: `random`, `embedded-inpainting` (shipped, of `tiny-inpainting`), a run of the "
        "same task and inputs (its folder, name, `latest` or RUN@best; averaged weights, which the new run keeps), a "
        "local folder in diffusers' layout, or a hub id.",
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
