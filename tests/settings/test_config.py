"""The configuration: what wins, what is refused and with which words, what a stage's proof depends on."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowlab.errors import UserError
from shadowlab.settings.files import dump_config, load_config, preset_names, presets_folder
from shadowlab.settings.schema import Config, PrecisionName

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8) | st.sampled_from(
    [
        "1e-4",
        "1e5",
        ".5e3",
        "null",
        "~",
        "yes",
        "on",
        "2026-01-01",
        "12:30",
        "0x1f",
        "a: b",
        "- a",
        " ",
        "#",
        "NaN",
        "=",
    ]
)
PLACES = TEXTS.filter(lambda text: text == "~" or not text.startswith("~"))  # ~name is a user, who must exist
POSITIVE = st.integers(1, 10**9)
FRACTION = st.floats(0, 1, exclude_max=True)
RATE = st.floats(1e-300, 1.0, allow_subnormal=False)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(**arguments: Any) -> str:
    """The message of the refusal, which must be one line."""
    with pytest.raises(UserError) as caught:
        load_config(**arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    tree: dict[str, Any] = {
        "seed": draw(st.integers(0, 2**70)),
        "device": draw(TEXTS),
        "precision": draw(st.sampled_from(get_args(PrecisionName))),
        "allow_unsafe": True,
        "output_dir": draw(TEXTS),
        "model": {"weights": draw(PLACES), "vae": draw(PLACES), "gradient_checkpointing": draw(st.booleans())},
        "data": {"path": draw(TEXTS), "image_size": 8 * draw(st.integers(4, 512))},
        "optimizer": {
            "learning_rate": draw(RATE),
            "beta2": draw(FRACTION),
            "eps": draw(RATE),
            "max_grad_norm": draw(st.none() | RATE),
        },
        "train": {"max_steps": draw(POSITIVE), "ema_decay": draw(st.none() | FRACTION)},
        "validation": {"timesteps": draw(st.lists(FRACTION, min_size=1, max_size=4))},
        "diagnostics": {"histogram_parameters": draw(st.lists(TEXTS, max_size=3))},
    }
    return Config.model_validate(tree)


@settings(max_examples=30)  # PyYAML is slow
@given(configs())
def test_what_is_written_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    file = write(tmp_path_factory.mktemp("config") / "config.yaml", dump_config(config))
    assert load_config(file=file) == config


@pytest.mark.parametrize("preset", [path.stem for path in presets_folder().glob("*.yaml")])
def test_every_preset_loads(preset: str) -> None:
    assert preset in preset_names()
    load_config(preset=preset, options={"allow_unsafe": True} if preset == "seed-fp16" else {})


def test_the_real_presets_are_the_papers() -> None:
    assert load_config(preset="sdxl").model.architecture == "sdxl"
    full = load_config(preset="sdxl-4xh100")
    assert (full.train.batch_size, full.train.max_steps, full.data.image_size) == (2, 150_000, 1024)
    assert full.optimizer.learning_rate == 1e-5
    assert full.precision == "fp32"


def test_precedence(tmp_path: Path) -> None:
    """defaults < bases in their order < the file < options < --set."""
    write(tmp_path / "first.yaml", "train: {max_steps: 1, batch_size: 1, log_every: 1, validate_every: 1}\nseed: 1")
    write(tmp_path / "second.yaml", "train: {max_steps: 2, batch_size: 2, log_every: 2}")
    file = write(tmp_path / "run.yaml", "base: [first.yaml, second.yaml]\ntrain: {max_steps: 3, batch_size: 3}")
    config = load_config(
        file=file, options={"train.max_steps": 4, "train.batch_size": 4}, assignments=["train.max_steps=5"]
    )
    train = config.train
    assert (train.max_steps, train.batch_size, train.log_every, train.validate_every) == (5, 4, 2, 1)
    assert config.seed == 1
    assert train.gradient_accumulation_steps == Config().train.gradient_accumulation_steps


def test_without_anything_it_is_tiny() -> None:
    assert load_config() == load_config(preset="tiny") == load_config(file="tiny")


def test_the_last_set_wins() -> None:
    assert load_config(assignments=["seed=1", "seed=2"]).seed == 2


def test_an_empty_section_takes_nothing_away(tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", "base: [sdxl]\ntrain: {}\n")
    assert load_config(file=file) == load_config(preset="sdxl")


def test_a_set_section_is_merged_not_replaced() -> None:
    config = load_config(preset="sdxl", assignments=["train={batch_size: 7}"])
    assert config == load_config(preset="sdxl", assignments=["train.batch_size=7"])


@pytest.mark.parametrize("text", ["1e-4", "1.e-4", "1E-4", ".1e-3", "0.0001", "+1e-4"])
def test_scientific_numbers_are_numbers(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "run.yaml", f"optimizer: {{learning_rate: {text}}}")
    assert load_config(file=file).optimizer.learning_rate == 1e-4
    assert load_config(assignments=[f"optimizer.learning_rate={text}"]).optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("train: {max_stepz: 5}", ["`train.max_stepz`", "Did you mean `train.max_steps`"]),
        ("trian: {max_steps: 5}", ["`trian`", "Did you mean `train`"]),
        ("zzz: 1", ["`zzz`", "It has:", "optimizer"]),
        ("1: 2", ["`1` is not an option"]),
        ("train: {max_steps: many}", ["train.max_steps", "integer", "'many'"]),
        ("train: {max_steps: 2.5}", ["train.max_steps", "2.5"]),
        ("train: {max_steps: true}", ["train.max_steps", "true"]),
        ("optimizer: {learning_rate: yes}", ["optimizer.learning_rate", "true or false"]),
        ("train: {max_steps: 0}", ["train.max_steps", "greater than 0"]),
        ("optimizer: {learning_rate: .nan}", ["optimizer.learning_rate"]),
        ("optimizer: {learning_rate: .inf}", ["optimizer.learning_rate"]),
        ("optimizer: {eps: 0}", ["optimizer.eps", "greater than 0"]),
        ("data: {image_size: 100}", ["data.image_size", "multiple of 8"]),
        ("data: {image_size: 8}", ["data.image_size", "at least 32", "an eighth"]),
        ("data: {image_size: 80000}", ["data.image_size", "at most 4096"]),
        ("optimizer: {learning_rate: 1e300}", ["optimizer.learning_rate", "10"]),
        ("overfit: {learning_rate: 1e300}", ["overfit.learning_rate", "10"]),
        ("optimizer: {eps: 1e300}", ["optimizer.eps", "1"]),
        ("optimizer: {weight_decay: 1e300}", ["optimizer.weight_decay", "100"]),
        ("train: &a {max_steps: *a}", ["an alias holds itself", "write the values out"]),
        ("a: " + "[" * 5000, ["nested too deeply"]),
        ("model: {weights: ~nosuch/x}", ["model.weights", "no such folder", "write the path out"]),
        ("model: {vae: ~nosuch/x}", ["model.vae", "no such folder", "write the path out"]),
        ("output_dir: " + "x" * 300, ["output_dir", "File name too long"]),
        ("model: {vae: " + "x" * 300 + "}", ["model.vae", "File name too long"]),
        ("validation: {timesteps: [0.5, 1.0]}", ["validation.timesteps.1", "less than 1"]),
        ("validation: {timesteps: []}", ["validation.timesteps"]),
        ("diagnostics: {histogram_parameters: [a, 5]}", ["diagnostics.histogram_parameters.1", "string"]),
        ("train:\n", ["train", "None"]),
        ("train: 5", ["train", "5"]),
        ("seed: {a: 1}", ["seed", "integer"]),
        ("precision: fp8", ["precision", "'fp32'", "'fp8'"]),
        ("train: {max_steps: 1, max_steps: 2}", ["`max_steps` is given twice"]),
        ("seed: 1\nseed: 1", ["`seed` is given twice"]),
        ("[a]: 1", ["no name"]),
        ("- a", ["must be a mapping"]),
        ("a: [", ["not readable as YAML"]),
        ("output_dir: 2026-13-01", ["not readable as YAML", "month"]),
        ("base: sdxl", ["`base` must be a list"]),
        ("base: [sdlx]", ["base sdlx", "did you mean `sdxl`"]),
    ],
)
def test_a_refusal_names_the_file_and_the_fix(tmp_path: Path, text: str, fragments: list[str]) -> None:
    file = write(tmp_path / "run.yaml", text)
    message = refused(file=file)
    for fragment in [str(file), *fragments]:
        assert fragment in message


def test_a_wrong_key_of_a_base_names_the_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "train: {max_stepz: 5}")
    file = write(tmp_path / "run.yaml", "base: [base.yaml]\ntrain: {max_steps: 3}")
    assert str(base) in refused(file=file)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("train.max_steps", "section.key=value"),
        ("=5", "section.key=value"),
        ("train.max_stepz=5", "`train.max_stepz` is not an option. Did you mean `train.max_steps`?"),
        ("train={max_stepz: 5}", "`train.max_stepz` is not an option"),
        ("lr=1", "`lr` is not an option. Did you mean `optimizer.learning_rate`?"),
        ("data.batch_size=1", "`data.batch_size` is not an option. Did you mean `train.batch_size`?"),
        ("train.precision=bf16", "`train.precision` is not an option. Did you mean `precision`?"),
        ("optimizer.zzz=1", "`optimizer.zzz` is not an option. It has: learning_rate, "),
        ("train={}=", "not YAML"),
        ("seed=[", "not YAML"),
        ("seed={{a}}", "not YAML"),
        ("output_dir=2026-13-01", "not YAML"),
        ("seed=", "None"),
        ("optimizer=3", "optimizer is a section; set one of its keys, e.g. optimizer.learning_rate=..."),
        ("validation.timesteps=0.5", "must be a list: write [0.5]"),
        ("seed.a=1", "seed"),
        ("train..a=1", "`train.` is not an option"),
        ("train=&a {max_steps: *a}", "an alias holds itself"),
        ("model.vae=~nosuch/x", "model.vae: no such folder"),
    ],
)
def test_a_refused_set_repeats_what_was_typed(text: str, fragment: str) -> None:
    message = refused(assignments=[text])
    assert f"--set {text}" in message
    assert fragment in message


def test_a_refused_option_is_named() -> None:
    assert refused(options={"train.max_steps": -1}) == "--max-steps: must be greater than 0; got -1"
    assert refused(options={"overfit.num_samples": 0}) == "--samples: must be greater than 0; got 0"


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "run.yaml", text)
    assert f"{file}: no settings in it" in refused(file=file)


@pytest.mark.parametrize("chain", [["a"], ["b", "a"]])
def test_bases_in_a_circle(tmp_path: Path, chain: list[str]) -> None:
    names = ["a", *chain]
    for name, base in pairwise(names):
        write(tmp_path / f"{name}.yaml", f"base: [{base}.yaml]")
    message = refused(file=tmp_path / "a.yaml")
    assert "leads back" in message
    assert "a.yaml" in message


def test_one_base_may_come_twice(tmp_path: Path) -> None:
    """A diamond is no circle."""
    write(tmp_path / "a.yaml", "seed: 7")
    write(tmp_path / "b.yaml", "base: [a.yaml]")
    assert load_config(file=write(tmp_path / "c.yaml", "base: [a.yaml, b.yaml]")).seed == 7


def test_unknown_preset_and_file() -> None:
    assert "did you mean `tiny`" in refused(preset="tinny")
    assert "neither a file nor a preset" in refused(file="absent.yaml")
    assert "exclude each other" in refused(preset="tiny", file="x.yaml")


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert "run.yaml" in refused(file=tmp_path / "run.yaml")


def test_half_weights_must_be_asked_for_twice() -> None:
    message = refused(options={"precision": "fp16-pure"})
    assert "eps" in message
    assert "--allow-unsafe" in message
    assert load_config(options={"precision": "fp16-pure", "allow_unsafe": True}).precision == "fp16-pure"


def test_the_same_vae_is_the_one_next_to_the_weights(tmp_path: Path) -> None:
    """On the hub a pipeline's VAE lies in vae/; a local folder is searched by the loader; random goes with random."""
    for weights, wanted in (("owner/name", "owner/name/vae"), (str(tmp_path), str(tmp_path)), ("random", "random")):
        config = load_config(assignments=[f"model.weights={weights}", "model.vae=same"])
        assert config.model.vae_source == wanted


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().train.max_steps = 5  # type: ignore[misc]


def test_no_default_is_refused_by_its_own_rule() -> None:
    assert Config.model_validate(Config().model_dump()) == Config()
    assert all(math.isfinite(t) for t in Config().validation.timesteps)


def test_a_file_that_gives_a_key_under_its_old_and_its_new_name_is_asked_which(tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("overfit: {min_soft_iou: 0.3}\ntask_options: {min_soft_iou: 0.5}\n")
    with pytest.raises(UserError, match=r"both\.yaml: overfit\.min_soft_iou is task_options\.min_soft_iou now"):
        load_config(file=file)
    newer = tmp_path / "newer.yaml"
    file.write_text("overfit: {min_soft_iou: 0.3}\n")
    newer.write_text("base: [both.yaml]\ntask_options: {min_soft_iou: 0.5}\n")
    assert load_config(file=newer).task_options == {"min_soft_iou": 0.5}
