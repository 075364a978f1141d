"""The command that follows from a verdict can be typed as it stands, and keeps what was typed before."""

import json
import subprocess
from pathlib import Path

import pytest

from diagnostics import Verdict
from shadowlab.runs import Remedy, RunFolder, write_remedy
from shadowlab.settings import load_config

UNDERFLOW = Verdict("optimizer", "divide_by_zero", "underflow", witness={"dtype": "float16"})


def remedy(folder: Path, words: list[str], verdict: Verdict = UNDERFLOW, **options: object) -> Remedy:
    config = load_config(options={"output_dir": str(folder), **options})
    run = RunFolder.create(config, "run")
    incident = run.path / "incidents"
    made = write_remedy(incident, verdict, run, words)
    assert Remedy.read(incident) == made
    return made


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("train --config seed-fp16 --allow-unsafe", "train --config seed-fp16"),
        ("train --precision fp16-pure --run a --set train.max_steps=5", "train --run a-bf16 --set train.max_steps=5"),
        ("overfit --precision=fp16 --set precision=fp16 --samples 4 --resume", "overfit --samples 4"),
    ],
)
def test_the_option_takes_the_place_of_those_that_it_contradicts(tmp_path: Path, typed: str, wanted: str) -> None:
    made = remedy(tmp_path, typed.split(), precision="fp16-pure", allow_unsafe=True)
    assert made.command == f"shadowlab {wanted} --precision bf16"


WORDS = ("it's $(touch made)", 'a "b" \\\\ `c`', "white space", "*", "~", "é", "a!b", "{1,2}", "x\ny")


@pytest.mark.parametrize("word", WORDS)
def test_a_shell_reads_the_words_that_were_typed(tmp_path: Path, word: str) -> None:
    command = remedy(tmp_path / "a", ["train", "--data", word], precision="fp16-pure", allow_unsafe=True).command
    assert command is not None
    assert _typed(command, tmp_path) == ["train", "--data", word, "--precision", "bf16"]
    data = remedy(tmp_path / "b", ["train"], Verdict("data", None, "unknown"), **{"data.path": word}).command
    assert data is not None
    assert _typed(data, tmp_path) == ["data", "check", word]


def _typed(command: str, here: Path) -> list[str]:
    """What bash gives to `shadowlab`."""
    script = f"shadowlab() {{ printf '%s\\0' \"$@\"; }}; {command}"
    done = subprocess.run(["bash", "-c", script], cwd=here, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_no_command_is_made_up(tmp_path: Path) -> None:
    """Of another program's words, of a fault that no option is known to help, and of incidents without the file."""
    assert remedy(tmp_path / "a", ["-q", "x"], precision="fp16-pure", allow_unsafe=True).command is None
    grown = Verdict("forward", "overflow", "overflow", witness={"dtype": "float32"})
    assert remedy(tmp_path / "b", ["train"], grown) == Remedy()
    assert Remedy.read(tmp_path) == Remedy()
    (tmp_path / "remedy.json").write_text(json.dumps({"command": [1], "warned": 3}))
    assert Remedy.read(tmp_path) == Remedy()


def test_a_small_eps_is_raised(tmp_path: Path) -> None:
    verdict = Verdict("optimizer", "invalid", "out_of_domain", witness={"dtype": "float32"})
    made = remedy(tmp_path, ["train", "--set", "optimizer.eps=1e-60"], verdict, **{"optimizer.eps": 1e-60})
    assert made.command == "shadowlab train --set optimizer.eps=1e-08"


def test_what_check_forward_had_warned_of_is_kept(tmp_path: Path) -> None:
    config = load_config(options={"output_dir": str(tmp_path)})
    earlier = RunFolder.create(config, "earlier")
    checks = [{"seen": "eps is 0", "mend": "raise it", "tolerated": True, "passed": False}, {"passed": True}]
    earlier.record_stage("check-forward", passed=True, config=config, summary={"checks": checks})
    [warned] = remedy(tmp_path, ["train"]).warned
    assert (warned.stage, warned.run, warned.text) == ("check-forward", str(earlier.path), "eps is 0; raise it")
