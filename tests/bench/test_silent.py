"""The corpus of silent faults is well formed, its healthy loops train, and the score counts what it says."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from cli.main import app
from diagnostics.contracts import CONTRACTS
from shadowlab.bench.silent import CORPUS, Case, Expected, Watching, format_report, run_silent
from shadowlab.bench.silent.document import tables
from shadowlab.bench.silent.nets import loader, samples
from shadowlab.bench.silent.ranks import try_on_ranks
from shadowlab.bench.silent.score import WITHIN, judged, names_one
from shadowlab.bench.silent.tools import TOOLS, WATCH, Nothing, Said
from shadowlab.bench.silent.trial import Trial, run_with, tried
from shadowlab.errors import UserError

FAULTS = [case for case in CORPUS if case.expected is not None]
HEALTHY = [case for case in CORPUS if case.healthy]
SOURCE = re.compile(r"[\w.-]+/[\w.-]+#\d+|https://\S+\.\S+/\S+")


def test_names_are_unique_and_those_of_their_loops() -> None:
    assert len({case.name for case in CORPUS}) == len(CORPUS)
    assert [case.name for case in CORPUS] == [case.loop.__name__ for case in CORPUS]


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_a_case_has_a_public_source_and_says_what_it_is(case: Case) -> None:
    assert SOURCE.fullmatch(case.reference), case.reference
    assert case.loop.__doc__ and case.loop.__doc__.strip().endswith(".")
    if case.expected is not None:
        assert case.expected.visible >= 0 and case.expected.rules and case.expected.where and case.tags


def test_each_fault_may_be_named_by_a_rule_that_there_is() -> None:
    rules = set(CONTRACTS)
    for case in FAULTS:
        assert case.expected is not None and rules & set(case.expected.rules), case.name


def test_the_corpus_has_what_it_says() -> None:
    assert len(FAULTS) >= 170 and len(HEALTHY) >= 60
    assert {case.host for case in FAULTS} == {case.host for case in HEALTHY}
    assert {case.host for case in FAULTS} == {"plain", "accelerate", "lightning", "trainer", "ddp"}


# Healthy loops train, all of them in the same way each time


def final_bits(case: Case) -> list[bytes]:
    tool = Nothing()
    trial = run_with(case, tool)
    assert trial.error is None, trial.error
    values = [value for model in tool.models for value in model.state_dict().values()]
    assert values and all(value.isfinite().all() for value in values)
    assert all(map(math.isfinite, tool.losses))
    return [value.numpy().tobytes() for value in values]


@pytest.mark.parametrize("case", [case for case in HEALTHY if case.host == "plain"], ids=lambda case: case.name)
def test_a_healthy_loop_trains_finite_and_the_same_each_time(case: Case) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert final_bits(case) == final_bits(case)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("host", ["accelerate", "lightning", "trainer"])
def test_a_healthy_loop_of_a_library_trains_finite(host: str) -> None:
    pytest.importorskip({"accelerate": "accelerate", "lightning": "lightning", "trainer": "transformers"}[host])
    cases = [case for case in HEALTHY if case.host == host]
    assert cases and all(map(final_bits, cases))


def test_a_loop_of_two_ranks_is_tried_on_both() -> None:
    (case,) = [case for case in HEALTHY if case.name == "two_ranks_accumulate"]
    (found,) = try_on_ranks([case], TOOLS["nothing"])
    assert found.error is None and not found.said


# The score


FAULT = Case(
    "made_up", "owner/repo#1", lambda watching: None, Expected(3, ("one-rule", "another"), ("head", "zero_grad"))
)
TWIN = Case("made_up_twin", "owner/repo#1", lambda watching: None)


def said(rule: str = "one-rule", where: str = "head.weight", step: int | None = 3, severity: str = "alarm") -> Said:
    return Said(rule, where, step, severity, "made up")


def trial(*what: Said) -> Trial:
    return Trial(what, None, 0.0)


@pytest.mark.parametrize(
    ("what", "found", "in_time", "placed"),
    [
        ((), False, False, False),
        ((said(),), True, True, True),
        ((said(step=3 + WITHIN),), True, True, True),
        ((said(step=4 + WITHIN),), True, False, True),
        ((said(step=2),), True, False, True),
        ((said(step=None),), True, False, True),
        ((said(where="encoder.weight"),), True, True, False),
        ((said(where=""),), True, True, False),
        ((said("a-third"),), False, False, False),
        ((said(step=1), said(step=4)), True, True, True),
        ((said("a-third"), said("another", "optimizer.zero_grad()", severity="warning")), True, True, True),
    ],
)
def test_a_fault_is_found_by_its_rules_soon_and_in_its_place(
    what: tuple[Said, ...], found: bool, in_time: bool, placed: bool
) -> None:
    verdict = judged(FAULT, trial(*what))
    assert (verdict.found, verdict.in_time, verdict.placed) == (found, in_time, placed)


def test_whatever_a_tool_of_others_says_of_a_fault_counts() -> None:
    assert judged(FAULT, trial(said("TA500")), any_rule=True).in_time
    assert not judged(FAULT, trial(said("TA500"))).found


def test_of_a_healthy_loop_everything_counts_and_alarms_apart() -> None:
    verdict = judged(TWIN, trial(said(), said("another", severity="warning")))
    assert len(verdict.others) == 2 and len(verdict.alarms) == 1


@pytest.mark.parametrize(
    ("where", "place", "named"),
    [
        ("head.weight", "head", True),
        ("model.net.Head", "net.head", True),
        ("optimizer.zero_grad()", "zero_grad", True),
        ("forehead.weight", "head", False),
        ("head_norm", "head", False),
        ("net.head", "head.net", False),
        ("", "head", False),
    ],
)
def test_a_place_is_named_by_whole_words(where: str, place: str, named: bool) -> None:
    assert names_one(said(where=where), [place]) is named


# Runs


def broken(watching: Watching) -> None:
    """Ends early."""
    raise RuntimeError("the loop is broken")


def stuck(watching: Watching) -> None:
    """Never steps."""
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watching(model, optimizer)
    for batch in loader(samples(16)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss: Tensor = model(batch["x"]).square().mean()
                loss.backward()


def test_a_loop_that_ends_early_is_counted_and_hides_no_other() -> None:
    corpus = [
        Case("broken", "owner/repo#1", broken),
        Case("stuck", "owner/repo#1", stuck, Expected(0, ("spoken-by-nobody",), ("step",)), held_out=True),
    ]
    report = run_silent(corpus=corpus)
    (ours,) = report.tools
    assert ours.errors == ["broken"] and not report.passed
    text = format_report(report)
    assert "RuntimeError: the loop is broken" in text
    assert re.search(r"^stuck +plain +spoken-by-nobody", text, re.MULTILINE)
    assert re.search(r"^ +held out +0 of 1 +0 of 1 +0 of 1$", text, re.MULTILINE) and " open " not in text
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["tools"][0]["totals"]["found"] == {"right": 0, "stated": 1}
    assert written["tools"][0]["totals_held_out"] == written["tools"][0]["totals"]


def test_tools_of_others_stand_in_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chatty(Nothing):
        def said(self) -> list[Said]:
            return [said("X1", "weight", 0)]

    def tool(name: str, package: str | None, make: Any = Chatty) -> Any:
        return type(WATCH)(name, make, package)

    monkeypatch.setattr(
        "shadowlab.bench.silent.runs.PEERS", (tool("chatty", "torch"), tool("absent", "no-such-package"))
    )
    corpus = [
        Case("stuck", "owner/repo#1", stuck, Expected(0, ("spoken-by-nobody",), ("weight",))),
        Case("stuck_twin", "owner/repo#1", stuck),
    ]
    report = run_silent(corpus=corpus, peers=True)
    _, chatty, absent = report.tools
    assert chatty.faults[0].verdict.in_time and chatty.faults[0].verdict.placed
    assert chatty.false_alarms == ["stuck_twin"] and not chatty.errors
    assert absent.missing and "not installed" in format_report(report)


def test_an_unknown_name_is_answered_with_those_that_are_close() -> None:
    with pytest.raises(UserError, match="no case is called 'zero_grad_forgoten'; close: zero_grad_forgotten"):
        run_silent(["zero_grad_forgoten"])


def test_a_watched_loop_gives_the_same_bits_as_a_bare_one() -> None:
    (case,) = [case for case in CORPUS if case.name == "classifier"]

    class Kept(type(WATCH.make())):  # type: ignore[misc]
        def __call__(self, model: Any, optimizer: Any = None, **options: Any) -> Any:
            self.models = [model]
            return super().__call__(model, optimizer, **options)

    kept = Kept()
    assert run_with(case, kept).error is None
    assert [value.numpy().tobytes() for value in kept.models[0].state_dict().values()] == final_bits(case)


@pytest.mark.parametrize("name", ["zero_grad_forgotten", "gan"])
def test_a_case_is_run_under_watch(name: str) -> None:
    (case,) = [case for case in CORPUS if case.name == name]
    assert tried(case, WATCH).error is None


def test_the_command_prints_the_table_and_one_document() -> None:
    shown = CliRunner().invoke(app, ["bench", "silent", "--only", "classifier"])
    assert shown.exception is None or isinstance(shown.exception, SystemExit)
    assert re.search(r"^Watch +all +0 of 0 +0 of 0 +0 of 0 +0 of 1 ", shown.output, re.MULTILINE), shown.output
    written = CliRunner().invoke(app, ["bench", "silent", "--only", "classifier", "--json"])
    assert written.exit_code == shown.exit_code == 0
    assert [case["name"] for case in json.loads(written.stdout)["tools"][0]["cases"]] == ["classifier"]


def test_the_page_lists_every_case_as_it_is() -> None:
    assert tables() in (Path(__file__).parents[2] / "docs" / "silent.md").read_text(encoding="utf-8")
