"""`shadowlab watch --records`: what is written of a script that nobody changed, and that it changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.commands import app
from diagnostics.records import read_records
from diagnostics.verdict import read_verdict_file

SCRIPT = """
import os
import sys
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if len(sys.argv) > 2:
    os.makedirs(sys.argv[2])
    os.chdir(sys.argv[2])
for i in range(6):
    optimizer.zero_grad()
    loss = model(torch.randn(5, 4)).square().mean()
    if sys.argv[1] == "fault" and i == 4:
        loss = loss + (loss.detach() * 0).log()
    loss.backward()
    optimizer.step()
    print(repr(loss.item()))
    torch.save(model, f"{i}.pt")
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def watch(*words: str) -> Result:
    here = Path.cwd()
    try:
        return CliRunner().invoke(app, ["watch", *words])
    finally:
        os.chdir(here)


def steps_in(path: Path) -> list[dict[str, object]]:
    return [record for record in read_records(path) if record["kind"] == "train"]


def test_records_change_neither_numbers_nor_files(folder: Path) -> None:
    plain = subprocess.run([sys.executable, "train.py", "healthy"], capture_output=True, text=True)
    before = [Path(f"{i}.pt").read_bytes() for i in range(6)]
    done = watch("--records", "mine", "--statistics-every", "2", "train.py", "healthy")
    assert done.exit_code == plain.returncode == 3
    assert done.stdout == plain.stdout
    assert [Path(f"{i}.pt").read_bytes() for i in range(6)] == before
    assert done.stderr.splitlines()[-1] == "records in mine"
    steps = steps_in(Path("mine/metrics.jsonl"))
    assert [step["loss"] for step in steps] == pytest.approx([float(word) for word in plain.stdout.split()], rel=1e-6)
    assert [("layers" in step, "parameters" in step) for step in steps] == [
        (i in (0, 1, 3, 5), i in (0, 1, 3, 5)) for i in range(6)
    ]
    health = CliRunner().invoke(app, ["health", "mine"])
    assert health.exit_code == 0, health.output


def test_a_script_that_goes_to_another_folder_leaves_all_where_it_was_started(folder: Path) -> None:
    done = watch("--records", "mine", "train.py", "fault", "elsewhere")
    assert done.exit_code == 1
    incident = Path("mine/incidents/step-00000005")
    assert f"evidence in {incident}" in done.stderr
    assert read_verdict_file(incident / "verdict.json").op == "log"
    assert [step.get("tripped", False) for step in steps_in(Path("mine/metrics.jsonl"))] == [False] * 4 + [True]
    again = watch("--incidents", "mine/incidents", "--from-step", "5", "train.py", "fault", "elsewhere")
    assert "FileExistsError" in again.stderr  # the script's own
    Path("elsewhere").rename("before")
    again = watch("--incidents", "mine/incidents", "--from-step", "5", "train.py", "fault", "elsewhere")
    assert "are those of the first run, bit for bit" in again.stderr


LATER = """
import torch
from torch import nn

first, second, third = (nn.Linear(3, 3) for _ in range(3))
one = torch.optim.SGD(first.parameters(), lr=0.1)
hidden = first(torch.ones(2, 3))
two = torch.optim.SGD(second.parameters(), lr=0.1)
second(hidden).square().mean().backward()
two.step()
one.step()
del one, two, first, second
last = torch.optim.SGD(third.parameters(), lr=0.1)
for _ in range(2):
    third(torch.ones(2, 3)).square().mean().backward()
    last.step()
"""


def test_optimizers_that_come_later_go_on_with_the_same_records(folder: Path) -> None:
    Path("later.py").write_text(LATER)
    done = watch("--records", "mine", "later.py")
    assert done.exit_code == 0, done.output
    assert [path.name for path in Path("mine").iterdir()] == ["metrics.jsonl"]
    assert [step["step"] for step in steps_in(Path("mine/metrics.jsonl"))] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--statistics-every", "5"], "error: --statistics-every: statistics go into the records; say where"),
        (["--records", "mine", "--statistics-every", "-1"], "error: --statistics-every -1: 0 for never, or more"),
        (["--records", "train.py"], "error: --records train.py: no such folder can be made (File exists)"),
        (["--records", "mine", "--from-step", "2"], "error: --records: a second run, which traces one step"),
    ],
)
def test_what_makes_no_sense_is_one_line(folder: Path, words: list[str], said: str) -> None:
    done = watch(*words, "train.py", "healthy")
    assert done.exit_code == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert not Path("0.pt").exists()
