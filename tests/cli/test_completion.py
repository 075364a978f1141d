"""What TAB offers, asked as a shell asks."""

import os
import sys
from pathlib import Path

import pytest

from tests import warm

SCRIPT = """
import sys
sys.argv[:] = ["shadowlab"]
from cli.main import main
try:
    main()
finally:
    heavy = {"torch", "diffusers", "accelerate", "numpy"} & set(sys.modules)
    assert not heavy, heavy
"""


def offered(line: str) -> list[str]:
    """What bash is given for a line whose last word is being typed."""
    words = line.split(" ")
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "_SHADOWLAB_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = warm.run([sys.executable, "-c", SCRIPT], kind=warm.LightProcess, env=environment, timeout=60)
    assert done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.fixture
def _runs() -> None:
    for age, name in enumerate(("newer", "older")):
        Path("runs", name).mkdir(parents=True)
        os.utime(Path("runs", name), (1e9 - age, 1e9 - age))
    Path("elsewhere", "mine").mkdir(parents=True)
    Path("mine.yaml").write_text("seed: 1\n")


@pytest.mark.usefixtures("_runs")
@pytest.mark.parametrize("command", ["why", "health", "inspect", "report", "tensorboard", "inspect newer --against"])
def test_runs_the_newest_first(command: str) -> None:
    assert offered(f"shadowlab {command} ") == ["latest", "newer", "older", "elsewhere/"]
    assert offered(f"shadowlab {command} ne") == ["newer"]
    assert offered(f"shadowlab {command} elsewhere/") == ["elsewhere/mine/"]


def test_where_no_run_is_there_is_nothing_but_latest() -> None:
    assert offered("shadowlab why ") == ["latest"]


@pytest.mark.usefixtures("_runs")
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("check-f", ["check-forward"]),
        ("train --preset sd", ["sdxl", "sdxl-4xh100"]),
        ("train --config t", ["tiny"]),
        ("train --config m", ["mine.yaml"]),
        ("train --precision fp16", ["fp16", "fp16-pure"]),
        ("train --device c", ["cpu", "cuda", "cuda:1"]),
        ("train --data e", ["embedded", "elsewhere/"]),
        ("train --set optimizer.b", ["optimizer.beta1=", "optimizer.beta2="]),
        ("train --set model.compile=", ["model.compile=true", "model.compile=false"]),
        ("train --set nonsense=", []),
        ("train --max", ["--max-steps"]),
        ("config s", ["show", "schema"]),
    ],
)
def test_names_and_values(line: str, wanted: list[str]) -> None:
    assert offered(f"shadowlab {line}") == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_can_be_printed(shell: str) -> None:
    script = "import sys; from cli.main import main; main()"
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    words = [sys.executable, "-c", script, "--show-completion", shell]
    done = warm.run(words, kind=warm.LightProcess, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"complete_{shell}" in done.stdout
