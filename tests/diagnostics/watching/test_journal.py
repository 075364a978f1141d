"""`records=`: a loop of somebody else leaves the records that a run of the harness leaves, and is judged as it runs."""

import logging
import math
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics import NonFiniteError, Watch
from diagnostics.records import History, read_records
from shadowlab.views.page.run_view import RunView


class Loop:
    def __init__(self, folder: Path | None, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.watch = Watch(self.model, self.optimizer, **{"incidents": None, "records": folder, **options})
        self.seen: list[tuple[float, float, float]] = []  # loss, norm, norm after clipping
        self.factor, self.notes, self.micro_batches = 1.0, False, 1
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=False)

    def body(self) -> None:
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self.micro_batches):
            x = torch.randn(16, 4)
            loss = self.factor * (self.model(x) - x.sum(1, keepdim=True)).square().mean() / self.micro_batches
            self.scaler.scale(loss).backward()
            total += loss.item()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        clipped = math.hypot(*(float(g.norm()) for g in gradients))
        self.seen.append((total, float(norm), clipped))
        if self.notes:
            self.watch.note(loss=total, grad_norm=float(norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def run(self, num_steps: int, first: int = 0) -> "Loop":
        for index in range(first, first + num_steps):
            self.watch.step(self.body, step_index=index)
        return self


def _steps(folder: Path) -> list[dict[str, Any]]:
    return [dict(one) for one in read_records(folder / "metrics.jsonl") if one["kind"] == "train"]


@pytest.mark.parametrize("form", ["plain", "notes", "scaled", "accumulated"])
def test_each_step_is_recorded_as_the_loop_saw_it(form: str, tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", statistics_every=4)
    loop.notes, loop.micro_batches = form == "notes", 3 if form == "accumulated" else 1
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=form == "scaled")
    loop.run(9)
    found = _steps(tmp_path / "run")
    assert [one["step"] for one in found] == list(range(1, 10))
    for one, (loss, norm, clipped) in zip(found, loop.seen, strict=True):
        assert one["loss"] == pytest.approx(loss, rel=1e-6) and one["grad_norm"] == pytest.approx(norm, rel=1e-6)
        assert one["learning_rate"] == 1e-2 and one["step_seconds"] > 0 and not one["skipped"]
        if "layers" in one:
            assert one.get("grad_norm_clipped", clipped) == pytest.approx(clipped, rel=1e-3)
            norms = [entry["gradient_norm"] for entry in one["parameters"].values()]
            assert math.hypot(*norms) == pytest.approx(norm, rel=1e-3)  # before clipping
            assert all(entry["update_ratio"] > 0 for entry in one["parameters"].values() if entry["update_ratio"])
    assert [one["step"] for one in found if "layers" in one] == [1, 4, 8]
    gradient = found[3]["layers"]["2"]["gradient"]["norm"]
    assert 1e-4 < gradient < 10  # without the scaler's factor
    history = History(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert history.curve("loss").steps[-1] == 9 and history.layer_names == ("0", "1", "2")


class _Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "_Reads":
        self._patch = pytest.MonkeyPatch()
        original = Tensor.tolist
        self._patch.setattr(Tensor, "tolist", lambda t: self.counts.update(tolist=1) or original(t))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._patch.undo()
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "local_scalar" in func.overloadpacket.__name__:
            self.counts.update(item=1)
        return func(*args, **(kwargs or {}))


def test_recording_reads_nothing_more_on_the_host_and_changes_no_weight(tmp_path: Path) -> None:
    reads, weights = [], []
    for folder in (None, tmp_path / "run"):
        loop = Loop(folder).run(2)
        with _Reads() as counter:
            loop.run(3, first=2)
        reads.append(counter.counts)
        weights.append(torch.cat([p.detach().flatten() for p in loop.model.parameters()]))
    assert reads[0] == reads[1] and torch.equal(*weights)


def test_a_loop_that_goes_on_keeps_its_records_and_one_that_begins_anew_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Loop(tmp_path).run(6)
    Loop(tmp_path).run(2, first=4)  # resumed at a checkpoint of step 4
    assert [one["step"] for one in _steps(tmp_path)] == [1, 2, 3, 4, 5, 6]
    headers = [dict(one) for one in read_records(tmp_path / "metrics.jsonl") if one["kind"] == "header"]
    assert [one.get("resumed_at") for one in headers] == [None, 4] and headers[0]["num_parameters"] == 49
    assert not caplog.records
    Loop(tmp_path).run(1)
    assert len(_steps(tmp_path)) == 1 and len(list(read_records(tmp_path / "earlier-1" / "metrics.jsonl"))) == 8
    assert "earlier-1" in caplog.text


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_a_run_that_begins_anew_has_no_incident_of_an_earlier_one(tmp_path: Path, factor: float) -> None:
    first = Loop(tmp_path, incidents=tmp_path / "incidents").run(2)
    first.factor = float("nan")
    with pytest.raises(NonFiniteError):
        first.run(1, first=2)
    second = Loop(tmp_path, incidents=tmp_path / "incidents")
    second.factor = factor
    with nullcontext() if factor == 1.0 else pytest.raises(NonFiniteError):
        second.run(1)
    assert [one.name for one in (tmp_path / "earlier-1" / "incidents").iterdir()] == ["step-00000003"]
    kept = [one.name for one in (tmp_path / "incidents").iterdir()] if (tmp_path / "incidents").exists() else []
    assert kept == ([] if factor == 1.0 else ["step-00000001"])
    assert RunView.read(tmp_path).status.word == ("recorded" if factor == 1.0 else "incident")
    assert RunView.read(tmp_path / "earlier-1").status.word == "incident"


def test_what_the_live_rules_find_is_in_findings_in_the_records_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(tmp_path, statistics_every=5).run(30)
    assert loop.watch.findings == []
    for index in range(30, 50):
        loop.factor *= 3.0
        loop.run(1, first=index)
    [finding] = loop.watch.findings
    assert finding.rule == "exploding-gradients" and finding.severity == "alarm"
    [line] = [one for one in caplog.records if one.name == "diagnostics.watch"]
    assert line.levelno == logging.ERROR and "exploding-gradients" in line.getMessage()
    recorded = [one for one in read_records(tmp_path / "metrics.jsonl") if one["kind"] == "health"]
    assert len(recorded) == 1
    again = Loop(tmp_path, statistics_every=5)
    again.factor = loop.factor
    again.run(10, first=50)  # resumed: what was reported is not reported once more
    assert again.watch.findings == []


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_step_that_trips_is_recorded_with_its_verdict(policy: Any, tmp_path: Path) -> None:
    loop = Loop(tmp_path, policy=policy).run(2)
    loop.factor = float("nan")
    if policy == "raise":
        with pytest.raises(NonFiniteError):
            loop.run(1, first=2)
    else:
        with pytest.warns(RuntimeWarning, match="left out"):
            loop.run(1, first=2)
    last = _steps(tmp_path)[-1]
    assert last["step"] == 3 and last["tripped"] and "loss" not in last and last["layers"]
    [incident] = [dict(one) for one in read_records(tmp_path / "metrics.jsonl") if one["kind"] == "incident"]
    assert incident["step"] == 3 and incident["verdict"]["phase"] == "loss"


def test_a_disk_that_refuses_ends_the_records_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    loop = Loop(tmp_path).run(2, first=7)
    assert len(loop.seen) == 2
    [line] = caplog.records
    assert "no more records" in line.getMessage() and line.levelno == logging.ERROR
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Loop(tmp_path / "file")


def test_without_records_nothing_is_written_or_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loop = Loop(None).run(3)
    assert loop.watch.findings == [] and list(tmp_path.iterdir()) == []
