"""The command line as a user meets it: first line, exit codes, one-line errors, JSON, run folders."""

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests import warm
from tests.tasks.shadow.malformed import make_all
from tests.tasks.shadow.sound import make_folder, write_metadata


def shadowlab(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def error_line(result: Result) -> str:
    """The single error line; fails on a traceback or a second line."""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return lines[0]


def test_first_line_names_the_default_preset_and_the_way_to_the_real_one() -> None:
    result = shadowlab("check-forward", "--data", "absent")
    first = result.stdout.splitlines()[0]
    assert "preset tiny" in first
    assert "--preset sdxl" in first


@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        (["--preset", "tinny"], 2, ["tinny", "did you mean `tiny`"]),
        (["--preset", "tiny", "--config", "x.yaml"], 2, ["--preset", "--config"]),
        (["--config", "absent.yaml"], 2, ["absent.yaml", "neither a file nor a preset"]),
        (["--set", "optimizer.learning_rte=1"], 2, ["optimizer.learning_rte", "`optimizer.learning_rate`"]),
        (["--set", "train.max_steps"], 2, ["section.key=value"]),
        (["--set", "train.max_steps=many"], 2, ["train.max_steps", "many"]),
        (["--precision", "fp8"], 2, ["precision", "fp32", "fp8"]),
        (["--precision", "fp16-pure"], 2, ["--allow-unsafe", "eps"]),
        (["--precision", "tf32", "--device", "cpu"], 2, ["tf32", "NVIDIA"]),
        (["--device", "tpu"], 2, ["tpu", "cpu"]),
        (["--data", "absent"], 2, ["absent"]),
        (["--data", "embedded", "--set", "data.image_size=100"], 2, ["data.image_size", "multiple of 8"]),
        (["--weights", "./nowhere"], 2, ["nowhere", "no such folder"]),
        (["--run", "../escape"], 2, ["--run", "../escape"]),
        (["--sample", "unknown"], 2, ["unknown", "no such id"]),
        (["--object", "a.png"], 2, ["--mask"]),
        (["--theta", "30"], 2, ["--object FILE --mask FILE", "DATA/objects/ID.png"]),
        (["--sample", "x", "--theta", "30"], 2, ["exclude each other", "metadata.json", "DATA/objects/ID.png"]),
        (["--set", "data.latents=''"], 2, ["data.latents", "must name a folder, or be null"]),
        (["--set", "optimizer=3"], 2, ["optimizer is a section", "optimizer.learning_rate=..."]),
        (["--object", "a.png", "--mask", "b.png", "--theta", "1", "--phi", "2"], 2, ["--size"]),
        (["--object", "a.png", "--mask", "b.png", "--theta", "1", "--phi", "2", "--size", "3"], 2, ["a.png"]),
    ],
)
def test_wrong_usage_is_one_line_with_the_fix(arguments: list[str], code: int, fragments: list[str]) -> None:
    result = shadowlab("check-forward", *arguments)
    assert result.exit_code == code
    line = error_line(result)
    for fragment in fragments:
        assert fragment in line


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("overfit.min_soft_iou=2", "task_options.min_soft_iou: must be less than or equal to 1; got 2"),
        ("task_options.min_soft_io=0.5", "Did you mean `task_options.min_soft_iou`?"),
    ],
)
def test_an_option_that_the_task_refuses_names_where_it_came_from(written: str, message: str) -> None:
    """Only the task can judge it, and only the command line knows what was written."""
    for command in ("overfit", "check-forward", "plan"):
        done = CliRunner().invoke(app, [command, "--set", written])
        assert done.exit_code == 2
        error = done.output.splitlines()[-1]
        assert error.startswith(f"error: --set {written}: ") and message in error


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--preset", "tinny"],
        ["train", "--set", "optimizer=3"],
        ["overfit", "--samples", "0"],
    ],
)
def test_a_configuration_error_does_not_wait_for_torch(words: list[str]) -> None:
    script = (
        "import sys; from cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 2\n"
        "assert not {'torch', 'diffusers', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "print('light')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", script, *words]
    done = warm.run(words, kind=warm.LightProcess, env=environment, timeout=60)
    assert done.stdout == "light\n", done.stderr


@pytest.mark.parametrize("words", [[], ["check-forward"], ["overfit"], ["train"], ["data"], ["data", "check"]])
def test_help_gives_flags_no_value_and_says_whose_defaults_hold(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
    assert result.exit_code == 0
    assert "bool" not in result.output.lower()
    presets = {"check-forward": 1, "overfit": 2, "train": 2}.get(" ".join(words), 0)
    assert " ".join(result.output.split()).count("[default: (the preset's)]") == presets  # wherever lines break


def test_train_looks_for_the_data_before_anything_is_made() -> None:
    result = shadowlab("train", "--data", "nope")
    assert result.exit_code == 2
    assert "nope: no such data set" in error_line(result)
    assert not Path("runs").exists()


@pytest.mark.parametrize(("precision", "warnings"), [("fp32", 0), ("bf16", 1)])
def test_half_precision_on_a_cpu_is_slow_and_says_so(precision: str, warnings: int) -> None:
    result = shadowlab("check-forward", "--device", "cpu", "--precision", precision, "--data", "absent")
    assert result.stdout.count("several times slower than fp32") == warnings


def test_a_complete_run_has_nothing_to_do(stage_folder: dict[str, Path]) -> None:
    words = ["train", "--skip-stages", "--run", "short", "--max-steps", "1", "--weights", str(stage_folder["unet"])]
    words += ["--data", str(stage_folder["data"]), "--set", f"model.vae={stage_folder['vae']}"]
    words += ["--set", "data.image_size=32", "--set", "validation.num_samples=2", "--set", "train.batch_size=2"]
    assert "train: passed" in shadowlab(*words).stdout
    again = shadowlab(*words, "--resume")
    assert again.exit_code == 0
    assert "train: nothing to do" in again.stdout
    assert "train: passed" not in again.stdout
    assert json.loads(shadowlab(*words, "--resume", "--json").stdout)["nothing_to_do"] is True


def test_hub_weights_without_network_are_an_environment_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries the network, again and again
    result = shadowlab("check-forward", "--weights", "nobody/nothing")
    assert result.exit_code == 3
    assert "--weights DIR" in error_line(result)


def test_json_holds_errors_too() -> None:
    result = shadowlab("check-forward", "--json", "--data", "absent")
    document = json.loads(result.stdout)
    assert document["passed"] is False
    assert "absent" in document["error"]


def test_a_used_run_folder_is_refused_and_left_alone() -> None:
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("results")
    result = shadowlab("check-forward", "--run", "mine")
    assert result.exit_code == 2
    assert "choose another --run" in error_line(result) and "--resume" not in error_line(result)  # it has none
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]


def test_plan_fits_or_ends_with_1(stage_folder: dict[str, Path]) -> None:
    words = ["plan", "--weights", str(stage_folder["unet"]), "--set", f"model.vae={stage_folder['vae']}", "--json"]
    words += ["--set", "data.image_size=32", "--strategy", "ddp", "--batch", "2", "--checkpointing"]
    result = shadowlab(*words)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["fits"] is True
    assert list(document["strategies"]) == ["ddp"]
    assert "batch 2 per process, fp32, with gradient checkpointing; ddp and fsdp2: 4 processes" in " ".join(
        result.stderr.split()
    )
    assert shadowlab(*words, "--gpu-memory", "1").exit_code == 1  # less than CUDA's own
    assert not Path("runs").exists()


def test_plan_refuses_what_it_would_ignore() -> None:
    result = shadowlab("plan", "--run", "mine")
    assert result.exit_code == 2
    assert "--run" in error_line(result)


def test_resume_without_a_run_says_so() -> None:
    result = shadowlab("train", "--resume")
    assert result.exit_code == 2
    assert "no run of preset tiny" in error_line(result)


def test_check_forward_passes_and_prints_json() -> None:
    result = shadowlab("check-forward", "--json", "--run", "proof")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["passed"] is True
    assert all(check["passed"] for check in document["checks"])
    assert {"stage", "run", "path", "checks"} <= set(document)
    run = Path("runs/proof")
    for name in ("config.yaml", "environment.json", "stages.json", "log.txt", "samples/input.png"):
        assert (run / name).is_file()
    assert json.loads((run / "stages.json").read_text())["check-forward"]["passed"] is True


def test_data_check_names_every_malformed_sample(tmp_path: Path) -> None:
    """Over 30 malformed data sets: exit 2, every problem one line that names the sample, no traceback."""
    cases = make_all(tmp_path / "malformed")
    assert len(cases) >= 30
    for case in cases:
        result = shadowlab("data", "check", str(case.path))
        output = result.stdout + result.stderr
        assert result.exit_code == 2, case.name
        assert "Traceback" not in output
        assert result.exception is None or isinstance(result.exception, SystemExit), case.name
        named = [line for line in output.splitlines() if case.sample in line and case.expect in line]
        assert named, f"{case.name}: {output}"


def test_training_on_a_malformed_set_is_refused_in_one_line(tmp_path: Path) -> None:
    case = make_all(tmp_path / "malformed")[0]
    result = shadowlab("train", "--skip-stages", "--data", str(case.path))
    assert result.exit_code == 2
    assert case.sample in error_line(result)


def test_data_check_counts_what_is_alike_and_json_names_all(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", num_samples=8)
    write_metadata(tmp_path / "set", {})
    result = shadowlab("data", "check", str(tmp_path / "set"))
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert sum("masks/" in line for line in lines) == 4
    assert "and 5 more like: img_00000: masks/img_00000.png: no entry" in result.stdout
    document = json.loads(shadowlab("data", "check", "--json", str(tmp_path / "set")).stdout)
    named = {problem["sample"] for problem in document["problems"]}
    assert named >= {f"img_{i:05d}" for i in range(8)}
    assert len(document["problems"]) == 1 + 3 * 8


def test_data_check_warns_without_failing(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", num_samples=2)
    result = shadowlab("data", "check", "--json", str(tmp_path / "set"))
    assert result.exit_code == 0
    assert "all samples show one object" in json.loads(result.stdout)["notices"][0]
    assert "warning: all samples show one object" in result.stderr


def test_data_check_passes_the_embedded_set() -> None:
    result = shadowlab("data", "check", "embedded")
    assert result.exit_code == 0, result.stdout
    assert "0 problems" in result.stdout
    assert "warning" not in result.stdout
