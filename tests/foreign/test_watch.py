"""`shadowlab watch SCRIPT` on scripts in the style of public ones."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.commands import app
from diagnostics.verdict import read_verdict_file

CLASSIFIER = """
import argparse
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.dropout = nn.Dropout(0.25)
        self.fc2 = nn.Linear(16, 4)

    def forward(self, x):
        return F.log_softmax(self.fc2(self.dropout(F.relu(self.fc1(x)))), dim=1)


def train(args, model, loader, optimizer, epoch):
    model.train()
    for i, (data, target) in enumerate(loader):
        data = data / 2
        optimizer.zero_grad()
        output = model(data)
        if args.fault == "backward" and epoch * len(loader) + i == 5:
            output = output * (output.detach() * 0).sqrt().add(output * 0).sqrt()
        if args.fault == "raise" and i == 3:
            nn.functional.one_hot(torch.tensor(9), 4)
        loss = F.nll_loss(output, target)
        loss.backward()
        optimizer.step()
        print(epoch, i, repr(loss.item()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--fault", default="none", choices=("none", "data", "backward", "raise"))
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    if args.seed is not None:
        torch.manual_seed(args.seed)
    x, y = torch.randn(32, 12), torch.randint(4, (32,))
    if args.fault == "data":
        x[21, 3] = float("nan")
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for epoch in range(2):
        train(args, model, DataLoader(TensorDataset(x, y), 8, shuffle=True), optimizer, epoch)
    raise SystemExit(3)


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # torch's writes [rank0] after a test with processes
    (tmp_path / "train.py").write_text(CLASSIFIER)
    return tmp_path


def line_of(text: str, file: str = "train.py") -> int:
    lines = Path(file).read_text().splitlines()
    return next(i for i, line in enumerate(lines, start=1) if text in line)


def watch(*words: str) -> Result:
    return CliRunner().invoke(app, ["watch", *words])


def test_a_healthy_script_gives_the_same_numbers_and_exit_code(folder: Path) -> None:
    plain = subprocess.run([sys.executable, "train.py", "--seed", "2"], capture_output=True, text=True)
    watched = subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", "watch", "train.py", "--seed", "2"], capture_output=True, text=True
    )
    assert plain.returncode == watched.returncode == 3
    assert plain.stdout == watched.stdout
    assert watched.stderr == "watch: 8 steps, no value that is not finite\n"
    assert not Path("incidents").exists()


def test_a_step_is_explained_by_its_loop_body_though_nobody_can_call_it(folder: Path) -> None:
    done = watch("train.py", "--seed", "2", "--fault", "backward")
    assert done.exit_code == 1
    verdict = read_verdict_file(Path("incidents/step-00000006/verdict.json"))
    assert (verdict.phase, verdict.op, verdict.exception) == ("backward", "div", "invalid")
    assert verdict.source is not None and verdict.source.endswith(f"train.py:{line_of('add(output * 0)')}")
    first, last = line_of("data = data / 2"), line_of("optimizer.step()")
    assert f"a copy of the loop's body, train.py:{first}-{last}; its loss was the same" in done.stderr
    assert "1 1" in done.stdout and "1 2" not in done.stdout  # printed as before, and not twice


def test_a_step_whose_statements_share_a_line_is_repeated_whole(folder: Path) -> None:
    halves = "loss.backward()\n        optimizer.step()"
    Path("train.py").write_text(CLASSIFIER.replace(halves, "loss.backward(); optimizer.step()"))
    done = watch("train.py", "--fault", "backward")
    verdict = read_verdict_file(Path("incidents/step-00000006/verdict.json"))
    assert (verdict.phase, verdict.op) == ("backward", "div")
    assert "its loss was the same" in done.stderr


def test_a_bad_sample_is_named_in_the_batch_that_its_loader_gave(folder: Path) -> None:
    done = watch("--incidents", "found", "train.py", "--fault", "data")
    [incident] = Path("found").iterdir()
    verdict = read_verdict_file(incident / "verdict.json")
    assert (verdict.phase, verdict.parameter) == ("data", "0") and len(verdict.samples) == 1
    assert "batch[0]" in done.stderr


def test_a_second_run_traces_the_step_and_compares_itself(folder: Path) -> None:
    first = watch("train.py", "--fault", "backward")
    again = watch("--from-step", "6", "train.py", "--fault", "backward")
    assert again.exit_code == 1
    assert read_verdict_file(Path("incidents/step-00000006-2/verdict.json")).op in first.stderr
    assert "are those of the first run, bit for bit" in again.stderr  # though the script has no seed
    text = Path("train.py").read_text().replace("def main():", "def main():\n    torch.seed()")
    Path("train.py").write_text(text)
    other = watch("--from-step", "6", "train.py", "--fault", "backward")
    assert "NOT the first one again: the loss of step 1 was" in other.stderr


GAN = """
import torch
from torch import nn

torch.manual_seed(0)
netD = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
netG = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
optimizerD = torch.optim.Adam(netD.parameters())
optimizerG = torch.optim.Adam(netG.parameters())
for i in range(4):
    netD.zero_grad()
    fake = netG(torch.randn(6, 2))
    errD = netD(fake.detach()).exp().mean() - netD(torch.randn(6, 4)).mean()
    errD.backward()
    optimizerD.step()
    netG.zero_grad()
    errG = -netD(fake).mean()
    if i == 2:
        errG = errG + (fake - fake).pow(2).sum(1).sqrt().mean()
    errG.backward()
    optimizerG.step()
"""


def test_of_two_optimizers_in_a_round_the_part_of_the_second_is_repeated(folder: Path) -> None:
    (folder / "gan.py").write_text(GAN)
    done = watch("gan.py")
    verdict = read_verdict_file(Path("incidents/step-00000006/verdict.json"))
    assert (verdict.phase, verdict.source) == ("backward", f"{folder}/gan.py:{line_of('sqrt()', 'gan.py')}")
    assert f"gan.py:{line_of('netG.zero_grad', 'gan.py')}-{line_of('optimizerG.step', 'gan.py')}" in done.stderr


VAE = """
import torch
from torch import nn
from torch.nn import functional as F

model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
optimizer = torch.optim.Adam(model.parameters())


def train_step(x, i):
    optimizer.zero_grad()
    z = x * torch.exp(x.abs() * (1e3 if i == 3 else 0)) * 0
    loss = F.binary_cross_entropy(model(z), torch.ones(5, 4))
    loss.backward()
    optimizer.step()


for i in range(5):
    train_step(torch.rand(5, 4) + 1, i)
torch.save(model, "model.pt")
"""


def test_an_exception_that_a_nan_caused_is_explained_from_the_function_that_makes_the_step(folder: Path) -> None:
    (folder / "vae.py").write_text(VAE)
    done = watch("vae.py")
    assert done.exit_code == 1 and "RuntimeError: all elements of input" in done.stderr
    verdict = read_verdict_file(Path("incidents/step-00000004/verdict.json"))
    assert (verdict.op, verdict.exception) == ("exp", "overflow")
    assert verdict.source == f"{folder}/vae.py:{line_of('torch.exp', 'vae.py')}"


def test_a_model_that_is_saved_whole_is_the_file_that_it_would_be(folder: Path) -> None:
    saved = "torch.manual_seed(0)\n" + VAE.replace("i == 3", "i == 9")
    (folder / "vae.py").write_text("import torch\n" + saved)
    subprocess.run([sys.executable, "vae.py"], check=True)
    plain = Path("model.pt").read_bytes()
    assert watch("vae.py").exit_code == 0
    assert Path("model.pt").read_bytes() == plain


def test_the_scripts_own_error_is_shown_as_python_shows_it(folder: Path) -> None:
    plain = subprocess.run([sys.executable, "train.py", "--fault", "raise"], capture_output=True, text=True)
    watched = watch("train.py", "--fault", "raise")
    assert watched.exit_code == plain.returncode == 1
    assert watched.stderr.startswith(plain.stderr) and "Traceback" in plain.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.py"], "error: nothing.py: no such file"),
        (["-m", "nothing.at.all"], "error: -m nothing.at.all: no such module"),
        (["broken.py"], "error: broken.py:2: not Python ("),
        (["picture.py"], "error: picture.py: not Python ("),
        (["--from-step", "0", "train.py"], "error: --from-step 0: steps are counted from 1"),
    ],
)
def test_what_cannot_be_run_is_one_line(folder: Path, words: list[str], said: str) -> None:
    (folder / "broken.py").write_text("x = 1\nif x\n")
    (folder / "picture.py").write_bytes(b"\x89PNG\r\n\0\0\xff")
    done = watch(*words)
    assert done.exit_code == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1


def test_a_script_without_an_optimizer_is_told_so(folder: Path) -> None:
    (folder / "plain.py").write_text("import sys\nprint(sys.argv)\n")
    done = watch("plain.py", "-m", "--incidents", "x", "-h")
    assert done.exit_code == 0 and done.stdout == "['plain.py', '-m', '--incidents', 'x', '-h']\n"
    assert "no optimizer of torch has stepped in this process" in done.stderr


def test_a_module_finds_its_neighbours(folder: Path) -> None:
    (folder / "project").mkdir()
    (folder / "project/__init__.py").touch()
    (folder / "project/part.py").write_text("word = 'here'\n")
    (folder / "project/run.py").write_text("import sys\nfrom project.part import word\nprint(word, sys.argv[1:])\n")
    done = watch("-m", "project.run", "--lr", "1")
    assert done.stdout == "here ['--lr', '1']\n"


ACCUMULATION = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(16, 4)
x[BAD, 2] = float("nan")
for i, (batch,) in enumerate(DataLoader(TensorDataset(x), 2)):
    loss = model(batch).square().mean() / 2
    loss.backward()
    if i % 2:
        optimizer.step()
        optimizer.zero_grad()
"""


@pytest.mark.parametrize(("bad", "step", "backward"), [(1, 1, "own"), (9, 3, "own"), (11, 3, "installed")])
def test_micro_batches_that_are_rounds_of_one_loop_are_not_repeated_by_the_last_of_them(
    folder: Path, bad: int, step: int, backward: str
) -> None:
    script = ACCUMULATION.replace("BAD", str(bad))
    if backward == "installed":
        package = folder / "site-packages/some_trainer"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("def backward(loss):\n    loss.backward()\n")
        before = "import sys\nsys.path.append('site-packages')\nimport some_trainer\n"
        script = before + script.replace("loss.backward()", "some_trainer.backward(loss)")
    (folder / "micro.py").write_text(script)
    done = watch("micro.py")
    verdict = read_verdict_file(Path(f"incidents/step-{step:08d}/verdict.json"))
    assert (verdict.phase, verdict.parameter, verdict.samples) == ("data", "0 of Linear", (bad % 2,))
    assert "not all of the step's backward passes were made in this round of its loop" in done.stderr
    assert f"--from-step {step}" in done.stderr
    again = watch("--from-step", str(step), "micro.py")
    assert again.exit_code == 1 and "phase data" in again.stderr


INNER = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for i in range(4):
    optimizer.zero_grad()
    for part in torch.randn(2, 3, 4):
        loss = model(part).square().mean()
        if i == 2:
            loss = loss + (loss.detach() * 0).log()
        loss.backward()
    [(model(torch.ones(1, 4)).sum() * scale).backward() for scale in (0.1, 0.2)]
    optimizer.step()
"""


def test_micro_batches_of_a_loop_within_the_step_are_repeated(folder: Path) -> None:
    (folder / "inner.py").write_text(INNER)
    done = watch("inner.py")
    verdict = read_verdict_file(Path("incidents/step-00000003/verdict.json"))
    assert (verdict.phase, verdict.op) == ("loss", "log")
    assert "inner.py:9-16" in done.stderr


OWN_ARGUMENT = """
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

model = nn.Linear(4, 2)
optimizer = torch.optim.Adam(model.parameters())


def act(state):
    state = torch.from_numpy(state).float()
    return Categorical(torch.softmax(model(state), -1)).sample()


def main():
    state = np.zeros(4, dtype="float32")
    for i in range(9):
        action = act(state)
        state = state + float("nan" if i == 5 else 0)
    optimizer.step()


main()
"""


def test_a_function_that_assigns_to_its_argument_is_repeated_from_where_it_is_called(folder: Path) -> None:
    (folder / "act.py").write_text(OWN_ARGUMENT)
    done = watch("act.py")
    assert done.exit_code == 1
    verdict = read_verdict_file(Path("incidents/step-00000001/verdict.json"))
    assert (verdict.phase, verdict.cause) == ("data", "bad_data")
    line = line_of("action = act", "act.py")
    assert f"act.py:{line}-{line}" in done.stderr
