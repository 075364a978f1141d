"""`shadowlab config`: what holds, where it came from, what may stand in a file."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from typer.testing import CliRunner, Result

from cli.main import app
from shadowlab.settings import Config, ResolvedConfig, format_origins, load_config
from tests.settings.test_config import configs


def shadowlab(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def origins(text: str) -> dict[str, str]:
    """Line without its indentation to the comment behind it."""
    return {line.partition("  # ")[0].strip(): line.partition("  # ")[2] for line in text.splitlines()}


def test_each_value_says_where_it_came_from() -> None:
    Path("mine.yaml").write_text("base: [tiny]\ntrain: {max_steps: 7}\n")
    words = ["config", "show", "--config", "mine.yaml", "--seed", "3", "--set", "optimizer.eps=1e-6"]
    result = shadowlab(*words)
    assert result.exit_code == 0
    found = origins(result.stdout)
    assert found["seed: 3"] == "--seed"
    assert found["eps: 1.0e-06"] == "--set optimizer.eps=1e-6"
    assert found["max_steps: 7"] == str(Path("mine.yaml").resolve())
    assert found["beta2: 0.95"] == "preset tiny"
    assert found["device: auto"] == "default"
    document = json.loads(shadowlab(*words, "--json").stdout)
    assert document["config"]["train"]["max_steps"] == 7
    assert document["origins"]["optimizer.beta2"] == "preset tiny"
    assert document["origins"].keys() >= {"seed", "diagnostics.histogram_parameters"}


def test_what_is_shown_can_be_given_again() -> None:
    shown = shadowlab("config", "show", "--preset", "sdxl-4xh100", "--set", "output_dir='1e4'").stdout
    Path("again.yaml").write_text(shown)
    wanted = load_config(preset="sdxl-4xh100", assignments=["output_dir='1e4'"])
    assert load_config(file="again.yaml") == wanted
    assert origins(shadowlab("config", "show", "--config", "again.yaml").stdout)["processes: 4"].endswith("again.yaml")


@settings(max_examples=20)
@given(configs())
def test_any_configuration_is_shown_as_it_is(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    file = tmp_path_factory.mktemp("shown") / "config.yaml"
    file.write_text(format_origins(ResolvedConfig(config, {"seed": "--set a=\nb: c"})), encoding="utf-8")
    assert load_config(file=file) == config


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--preset", "tinny"], "did you mean `tiny`"),
        (["--set", "train.max_stepz=1"], "Did you mean `train.max_steps`"),
        (["--run", "x"], "No such option: --run"),
        (["--precision", "fp16-pure"], "--allow-unsafe"),
    ],
)
def test_a_wrong_configuration_is_one_line(words: list[str], fragment: str) -> None:
    result = shadowlab("config", "show", *words)
    assert result.exit_code == 2
    assert fragment in result.output


def test_the_schema_is_what_editors_read() -> None:
    schema = json.loads(shadowlab("config", "schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert "$ref" not in json.dumps(schema)
    shown = yaml.safe_load(shadowlab("config", "show").stdout)
    assert shown.keys() | {"base"} == schema["properties"].keys()
    for name, section in shown.items():
        if isinstance(section, dict) and name != "task_options":  # a task's, which says what they are
            described = schema["properties"][name]["properties"]
            assert section.keys() == described.keys()
            assert all(one["description"] for one in described.values())
