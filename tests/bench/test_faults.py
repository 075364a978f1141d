"""The score of a verdict, on small cases made here; the corpus itself has its own tests."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diagnostics import Verdict
from shadowlab.bench import peers
from shadowlab.bench.corpus import FAULTS, Expected, Fault, Scene
from shadowlab.bench.faults import format_report, run_faults, score
from shadowlab.bench.peer_score import Naming, Peer, normalised, run_peer
from shadowlab.errors import UserError


def log_of_zero() -> Scene:
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {"x": torch.randn(3, 4)}
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, -1.0)

    def step() -> Tensor:
        loss = model(batch["x"]).log().mean()  # origin
        loss.backward()
        return loss

    return Scene(step, model, None, batch)


def healthy() -> Scene:
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 4), {"x": torch.randn(3, 4)}

    def step() -> Tensor:
        loss = model(batch["x"]).pow(2).mean()
        loss.backward()
        return loss

    return Scene(step, model, None, batch)


def nan_weight() -> Scene:
    scene = healthy()
    assert isinstance(scene.model, nn.Module)
    nn.init.constant_(scene.model.get_parameter("weight"), torch.nan)
    return scene


def breaks() -> Scene:
    def step() -> None:
        raise RuntimeError("the case is broken")

    return Scene(step, nn.Linear(2, 2))


LOG = Fault("log", "synthetic", log_of_zero, Expected("loss", "divide_by_zero", "out_of_domain", "log", at_origin=True))
WEIGHT = Fault("weight", "synthetic", nan_weight, Expected("state", None, "bad_state", parameter="weight"))
BENIGN = Fault("benign", "synthetic", healthy, None)


def verdict(**changes: object) -> Verdict:
    right = {"phase": "loss", "exception": "divide_by_zero", "cause": "out_of_domain", "op": "log"}
    return Verdict(**{**right, "source": LOG.origin, **changes})  # type: ignore[arg-type]


def test_a_right_verdict_is_right_in_what_the_case_states_and_in_nothing_else() -> None:
    assert score(LOG, verdict()) == {
        "phase": True,
        "exception": True,
        "cause": True,
        "place": True,
        "samples": None,
        "text": None,
        "replayed": None,
        "state": None,
        "alarm": None,
    }


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("phase", {"phase": "forward"}),
        ("exception", {"exception": None}),
        ("cause", {"cause": "underflow"}),
        ("place", {"op": "div"}),
        ("place", {"source": None}),
        ("place", {"source": f"{__file__}:1"}),
    ],
)
def test_one_wrong_field_is_wrong_alone(field: str, changes: dict[str, object]) -> None:
    assert [name for name, right in score(LOG, verdict(**changes)).items() if right is False] == [field]


def test_lines_are_compared_by_file_not_by_spelling() -> None:
    path, _, line = (LOG.origin or "").rpartition(":")
    assert score(LOG, verdict(source=f"{Path(path).parent}/../{Path(path).parent.name}/{Path(path).name}:{line}"))[
        "place"
    ]


def test_samples_are_compared_as_a_whole() -> None:
    fault = Fault("samples", "synthetic", log_of_zero, Expected("loss", samples=(1, 2)))
    assert score(fault, verdict(samples=(1, 2)))["samples"] is True
    assert score(fault, verdict(samples=(1,)))["samples"] is False


def test_a_missed_fault_is_wrong_in_all_it_states_and_a_false_alarm_in_the_alarm() -> None:
    assert [right for right in score(LOG, None).values() if right is not None] == [False] * 4
    assert score(BENIGN, None)["alarm"] is True
    assert score(BENIGN, verdict())["alarm"] is False


def test_totals_are_exact_counts() -> None:
    wrong = Fault("wrong", "synthetic", log_of_zero, Expected("forward", "divide_by_zero"))
    seen: list[str] = []
    report = run_faults(corpus=[LOG, WEIGHT, BENIGN, wrong], on_case=lambda case: seen.append(case.name))
    counts = {field: (count.right, count.stated) for field, count in report.totals.items()}
    assert counts == {
        "phase": (2, 3),
        "exception": (3, 3),
        "cause": (2, 2),
        "place": (2, 2),
        "samples": (0, 0),
        "text": (0, 0),
        "replayed": (0, 0),
        "state": (0, 0),
        "alarm": (1, 1),
    }
    counts = {field: (count.right, count.stated) for field, count in report.totals_watched.items()}
    assert counts == {
        "phase": (2, 3),
        "exception": (3, 3),
        "cause": (2, 2),
        "place": (2, 2),
        "samples": (0, 0),
        "text": (0, 0),
        "replayed": (3, 3),
        "state": (4, 4),
        "alarm": (1, 1),
    }
    assert seen == ["log", "weight", "benign", "wrong"]
    assert not report.passed and not report.false_alarms
    text = format_report(report)
    assert "wrong  explain  phase  forward   loss" in text
    assert "wrong  Watch    phase  forward   loss" in text
    assert "false alarms     0 of 1   0 of 1" in text
    assert "state as before  -        4 of 4" in text
    json.dumps(report.to_json(), allow_nan=False)


def test_a_case_that_raises_is_wrong_and_says_with_what() -> None:
    fault = Fault("breaks", "synthetic", breaks, Expected("loss", "invalid"))
    (case,) = run_faults(corpus=[fault]).cases
    assert case.error == "RuntimeError: the case is broken"
    assert case.right["phase"] is case.right["exception"] is False
    benign = run_faults(corpus=[Fault("breaks", "synthetic", breaks, None)])
    assert not benign.passed and "the case is broken" in format_report(benign)


def test_randomness_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowlab.bench.faults.PEERS", peers.PEERS[:2])  # the others take seconds to import
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_faults(corpus=[LOG], peers=True)
    assert torch.equal(before, torch.get_rng_state()) and not torch.is_anomaly_enabled()


def test_cases_are_chosen_by_name() -> None:
    assert [case.name for case in run_faults(["weight"], corpus=[LOG, WEIGHT]).cases] == ["weight"]
    with pytest.raises(UserError, match="'wieght'; close: weight"):
        run_faults(["wieght"], corpus=[LOG, WEIGHT])


def test_the_corpus_of_this_checkout_loads() -> None:
    faults = FAULTS
    assert len({fault.name for fault in faults}) == len(faults)


def peer_that_says(named: Naming | None) -> Peer:
    return Peer("peer", "torch", lambda scene: named)


@pytest.mark.parametrize(
    ("fault", "named", "right"),
    [
        (LOG, Naming(sources=("elsewhere.py:1", LOG.origin or "")), True),
        (LOG, Naming((("aten.log.default", "anywhere"),)), True),
        (LOG, Naming((("MeanBackward0", None),)), False),
        (LOG, None, False),
        (WEIGHT, Naming(tensors=("weight",)), True),
        (WEIGHT, Naming((("linear", ""),), modules=("",)), False),
        (BENIGN, None, True),
        (BENIGN, Naming(), False),
    ],
)
def test_a_peer_is_right_if_anything_it_names_is_the_origin(fault: Fault, named: Naming | None, right: bool) -> None:
    assert run_peer(peer_that_says(named), fault).right is right


@pytest.mark.parametrize(
    "op", ["div", "aten::div.Tensor", "aten.div.Tensor", "DivBackward0", "__rtruediv__", "_foreach_div_"]
)
def test_one_operator_has_one_name(op: str) -> None:
    assert normalised(op) == "div"


def test_a_peer_that_fails_is_counted() -> None:
    def fail(scene: Scene) -> Naming | None:
        raise NotImplementedError("no Bool")

    result = run_peer(Peer("peer", "torch", fail), LOG)
    assert result.error == "NotImplementedError: no Bool" and result.right is False


def test_a_peer_that_is_not_installed_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Peer("absent", "no-such-package", lambda scene: None)
    monkeypatch.setattr("shadowlab.bench.faults.PEERS", (absent,))
    report = run_faults(corpus=[LOG], peers=True)
    assert report.peers[0].missing and "not installed: pip install 'shadowlab[bench]'" in format_report(report)


@pytest.mark.parametrize(
    ("adapter", "fault", "says"),
    [
        (peers.detect_anomaly, LOG, None),
        (peers.debug_mode, LOG, True),
        (peers.debug_mode, BENIGN, None),
        (peers.detect_anomaly, BENIGN, None),
    ],
)
def test_torch_has_two_peers(adapter: Callable[[Scene], Naming | None], fault: Fault, says: bool | None) -> None:
    """0 times inf: detect_anomaly sees no NaN where log(0) only made an infinity."""
    result = run_peer(Peer("peer", "torch", adapter), fault)
    assert result.error is None
    if fault is LOG:
        assert (result.right is True) is (says is True)
    else:
        assert result.named is None
