"""A watched loop stops before anything bad is kept, says what happened, and is otherwise the loop that it was."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Verdict, Watch
from tests.diagnostics.loops import (
    CASES,
    PHASES,
    Net,
    Switch,
    case_average,
    case_backward,
    case_forward,
    case_optimizer_single,
    loop_of,
)
from tests.diagnostics.states import bits_of

pytestmark = pytest.mark.usefixtures("seeded")

# Nothing bad is kept, whatever the phase


@pytest.mark.filterwarnings("ignore:eps 1e-08")  # one of the faults
@pytest.mark.parametrize("bad_step", [0, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_and_nothing_of_it_is_kept(name: str, bad_step: int, tmp_path: Path):
    switch = Switch()
    loop = CASES[name](tmp_path, switch)
    if bad_step:
        assert loop.run(bad_step) is None
    switch.on = True
    error = loop.run(1, first=bad_step)
    assert error is not None
    assert error.verdict.phase == PHASES.get(name, name), error
    assert f"of step {bad_step + 1}" in str(error)
    if "optimizer" in name:
        assert error.verdict.cause == "underflow", error
        assert error.verdict.parameter in dict(loop.model.named_parameters())

    # and the loop can go on from there
    switch.on = False
    assert loop.run(2, first=bad_step + 1) is None


def test_a_loop_goes_on_as_if_the_bad_batch_had_not_been(tmp_path: Path):
    def final(*, trips: bool) -> dict[str, bytes]:
        torch.manual_seed(0)
        switch = Switch()
        loop = case_forward(tmp_path, switch)
        loop.run(2)
        if trips:
            batches, kept = loop.batch, torch.get_rng_state()
            switch.on = True
            assert loop.run(1, first=2) is not None
            torch.set_rng_state(kept)
            assert batches
            switch.on = False
        loop.run(2, first=2)
        return bits_of(loop.state())

    assert final(trips=True) == final(trips=False)


def test_state_that_was_bad_before_the_first_step(tmp_path: Path):
    loop = loop_of(Net(), tmp_path)
    with torch.no_grad():
        loop.model.first.weight[1, 2] = torch.nan
    error = loop.run(1)
    assert error is not None
    assert (error.verdict.phase, error.verdict.parameter) == ("state", "first.weight")
    assert error.verdict.witness["index"] == [1, 2]


def test_a_bad_sample_is_named(tmp_path: Path):
    loop = loop_of(Net(), tmp_path)
    batch = loop.batch()
    batch["x"][3, 1] = torch.inf
    batch["x"][3, 2] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(lambda: loop.one(batch), batch=batch)
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.parameter, verdict.samples, verdict.sample_ids) == ("data", "x", (3,), ("s3",))


# Watching changes nothing


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("half", [False, True])
def test_weights_are_bit_identical_with_and_without(every: int, half: bool, tmp_path: Path):
    def final(*, watched: bool) -> dict[str, bytes]:
        torch.manual_seed(0)
        model = Net(norm=nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.3)))
        dtype = torch.bfloat16 if half else torch.float32
        loop = loop_of(model.to(dtype), tmp_path, watch={"statistics_every": every}, dtype=dtype)
        if not watched:
            loop.watch.detach()
        assert loop.run(6) is None
        return bits_of(loop.state()) | {"random": loop.random()[0]}

    assert final(watched=True) == final(watched=False)


def test_detached_it_only_calls_and_attached_it_watches_again(tmp_path: Path):
    switch = Switch()
    loop = case_forward(tmp_path, switch)
    loop.watch.detach()
    hooks = [m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in loop.model.modules()]
    assert not any(hooks)
    switch.on = True
    assert torch.isnan(loop.watch.step(lambda: loop.one(loop.batch())))  # as bad as without a watch
    loop = case_forward(tmp_path, switch)
    loop.watch.detach()
    loop.watch.attach()
    assert loop.run(1) is not None


def test_nothing_stays_patched_after_a_step(tmp_path: Path):
    def seams() -> tuple[Any, ...]:
        return torch.autograd.backward, torch.nn.utils.clip_grad._get_total_norm, torch.amp.GradScaler.scale

    before = seams()
    switch = Switch()
    loop = case_forward(tmp_path, switch)
    loop.run(1)
    assert seams() == before
    switch.on = True
    loop.run(1, first=1)
    assert seams() == before
    assert not loop.optimizer._optimizer_step_pre_hooks

    with pytest.raises(KeyError):
        loop.watch.step(lambda: {}["the loop's own error"])
    assert seams() == before


def test_statistics_are_measured_at_their_cadence(tmp_path: Path):
    loop = loop_of(Net(), tmp_path, watch={"statistics_every": 3})
    measured = []
    for index in range(7):
        loop.watch.layers = {}
        assert loop.run(1, first=index) is None
        measured.append(bool(loop.watch.layers))
    assert measured == [True, False, True, False, False, True, False]
    assert [loop.watch.is_due(i) for i in range(7)] == measured

    loop.run(1, first=8)
    assert {"first", "last"} <= loop.watch.layers.keys()
    never = loop_of(Net(), tmp_path, watch={"statistics_every": 0})
    never.run(2)
    assert never.watch.layers == {}


# What a loop may do


@pytest.mark.parametrize(("loss", "norm", "phase"), [(True, False, "forward"), (False, True, "backward")])
def test_a_loop_that_reads_its_loss_may_say_so(loss: bool, norm: bool, phase: str, tmp_path: Path):
    switch = Switch()
    loop = (case_forward if loss else case_backward)(tmp_path, switch)

    def one(batch: dict[str, Any]) -> float:
        loop.optimizer.zero_grad()
        value = loop.loss(loop.model(batch["x"]), batch["y"])
        value.backward()
        total = nn.utils.get_total_norm([p.grad for p in loop.model.parameters()])
        loop.watch.note(loss=value.item(), grad_norm=total.item())
        loop.optimizer.step()
        return value.item()

    assert isinstance(loop.watch.step(lambda: one(loop.batch())), float)
    switch.on = True
    before, batch = bits_of(loop.state()), loop.batch()
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(lambda: one(batch), batch=batch)
    assert caught.value.verdict.phase == phase
    assert caught.value.verdict.step == 1
    assert bits_of(loop.state()) == before

    loop.watch.detach()
    with pytest.raises(NonFiniteError, match="attach the watch"):
        loop.watch.step(lambda: one(batch), batch=batch)
    assert bits_of(loop.state()) == before


def test_a_loop_that_swallows_exceptions_does_not_swallow_the_trip(tmp_path: Path):
    switch = Switch(on=True)
    loop = case_forward(tmp_path, switch)

    def careless(batch: dict[str, Any]) -> Tensor | None:
        try:
            return loop.one(batch)
        except Exception:
            return None

    with pytest.raises(NonFiniteError):
        loop.watch.step(lambda: careless(loop.batch()))


def test_a_fault_that_does_not_come_again_is_said_to_be_so(tmp_path: Path):
    calls = []

    def flaky(x: Tensor) -> Tensor:
        calls.append(1)
        return x * torch.nan if len(calls) == 3 else x

    loop = loop_of(Net(flaky), tmp_path)
    assert loop.run(2) is None
    before, batch = bits_of(loop.state()), loop.batch()
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(lambda: loop.one(batch), batch=batch, step_index=2)
    assert len(calls) == 4
    assert caught.value.verdict.reproducible is False
    assert caught.value.verdict.step == 2
    assert "race" in caught.value.verdict.fix
    assert bits_of(loop.state()) == before
    assert caught.value.incident is not None and (caught.value.incident / "batch.pt").is_file()


# The incident


@pytest.mark.parametrize("name", CASES)
def test_an_incident_is_complete_and_reproduces(name: str, tmp_path: Path):
    loop = CASES[name](tmp_path / "incidents", Switch(on=True))
    error = loop.run(1, first=41)
    assert error is not None and error.incident is not None
    folder = error.incident
    assert folder == tmp_path / "incidents" / "step-00000042"
    assert str(folder) in str(error)
    content = json.loads((folder / "verdict.json").read_text())
    assert Verdict.from_json(content).to_json() == error.verdict.to_json() == content
    assert (folder / "verdict.txt").read_text() == f"{error.verdict}\n"
    assert json.loads((folder / "environment.json").read_text())["torch"] == torch.__version__
    batch = torch.load(folder / "batch.pt", weights_only=True)
    assert batch["ids"] == [f"s{i}" for i in range(5)] and batch["x"].shape == (5, 4)
    randomness = torch.load(folder / "randomness.pt", weights_only=True)
    assert torch.equal(randomness["cpu"], torch.get_rng_state())

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(folder / "repro.py")]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not finite" in done.stdout


def test_a_culprit_that_is_given_its_memory_format_is_kept(tmp_path: Path):
    model, x = nn.Linear(4, 4), torch.full((1, 4, 4, 4), 1e6)

    def step() -> Tensor:
        return model(x).to(torch.float16, memory_format=torch.channels_last).float().sum()

    with pytest.raises(NonFiniteError) as caught:
        Watch(model, incidents=tmp_path).step(step, batch={"x": x})
    assert caught.value.incident is not None
    call = torch.load(caught.value.incident / "operator.pt", weights_only=True)
    assert (call["operator"], call["kwargs"]) == ("aten._to_copy.default", {"dtype": torch.float16})


def test_a_second_incident_of_a_step_keeps_the_first(tmp_path: Path):
    loop = case_forward(tmp_path, Switch(on=True))
    folders = [error.incident for error in (loop.run(1), loop.run(1)) if error is not None]
    assert folders == [tmp_path / "step-00000001", tmp_path / "step-00000001-2"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    loop = case_forward(tmp_path, Switch(on=True))
    loop.watch.incidents = None
    error = loop.run(1)
    assert error is not None and error.incident is None
    assert not list(tmp_path.iterdir())


def test_undo_is_kept_only_where_it_is_needed(tmp_path: Path):
    model = Net()
    assert loop_of(model, tmp_path).watch.undo_reason is None
    assert "float16" in str(case_optimizer_single(tmp_path, Switch()).watch.undo_reason)
    assert "averages" in str(case_average(tmp_path, Switch()).watch.undo_reason)
    half = [torch.zeros(2, dtype=torch.float16)]
    for average, reason in ((half, "averages are float16"), ([torch.zeros(2)], None)):
        optimizer = torch.optim.SGD(model.parameters())
        assert Watch(model, optimizer, safe_averages=average, incidents=None).undo_reason == reason
    always = Watch(copy.deepcopy(model), torch.optim.SGD(model.parameters()), undo="always", incidents=None)
    assert always.undo_reason is not None
