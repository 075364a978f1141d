"""The command line as a user meets it: first line, exit codes, one-line errors, JSON, run folders."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.data.malformed import make_all


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
        (["--object", "a.png", "--mask", "b.png", "--theta", "1", "--phi", "2"], 2, ["--size"]),
        (["--object", "a.png", "--mask", "b.png", "--theta", "1", "--phi", "2", "--size", "3"], 2, ["a.png"]),
    ],
)
def test_wrong_usage_is_one_line_with_the_mend(arguments: list[str], code: int, fragments: list[str]) -> None:
    result = shadowlab("check-forward", *arguments)
    assert result.exit_code == code
    line = error_line(result)
    for fragment in fragments:
        assert fragment in line


def test_hub_weights_without_network_are_an_environment_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
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
    assert "--resume" in error_line(result)
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]


def test_resume_without_a_run_says_so() -> None:
    result = shadowlab("train", "--resume")
    assert result.exit_code == 2
    assert "no run of preset tiny" in error_line(result)


@pytest.mark.slow
def test_check_forward_passes_and_prints_json() -> None:
    result = shadowlab("check-forward", "--json", "--run", "proof")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["passed"] is True
    assert all(check["passed"] for check in document["checks"])
    assert {"stage", "run", "path", "checks", "memory_gib"} <= set(document)
    run = Path("runs/proof")
    for name in ("config.yaml", "environment.json", "stages.json", "log.txt", "samples/input.png"):
        assert (run / name).is_file()
    assert json.loads((run / "stages.json").read_text())["check-forward"]["passed"] is True


@pytest.mark.slow
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


def test_data_check_passes_the_embedded_set() -> None:
    result = shadowlab("data", "check", "embedded")
    assert result.exit_code == 0, result.stdout
    assert "0 problems" in result.stdout
