"""Contracts in a watch: found, recorded, logged, raised where that is asked, and nothing else."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diagnostics import ContractError, Watch
from diagnostics.contracts.family import Family
from diagnostics.contracts.order import Order
from diagnostics.health import Finding
from tests.diagnostics.contracts.loops import Loop, Net, train
from tests.diagnostics.states import bits_of, state_of


def never_clears(loop: Loop) -> Tensor:
    loss = loop.loss()
    loss.backward()
    loop.optimizer.step()
    return loss.detach()


def test_a_finding_is_in_the_watch_in_the_records_and_on_the_console(tmp_path: Path, caplog):
    loop = Loop(records=tmp_path)
    loop.run(never_clears, 6)
    (found,) = loop.watch.findings
    assert (found.rule, found.step, found.where) == ("gradients-not-cleared", 1, "first.weight")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (record,) = [line for line in lines if line["kind"] == "health"]
    assert record["findings"][0]["rule"] == found.rule and record["step"] == 2
    (line,) = [one for one in caplog.records if one.name == "diagnostics.watch"]
    assert line.levelno == logging.ERROR and "zero_grad" in line.getMessage()


def test_without_records_it_is_in_the_watch_and_on_the_console(caplog):
    loop = Loop()
    loop.run(never_clears, 6)
    assert [found.rule for found in loop.watch.findings] == ["gradients-not-cleared"]
    assert len(caplog.records) == 1


def test_nothing_is_asked_where_that_is_not_wanted(caplog):
    assert Loop(contracts=False).run(never_clears, 6) == []
    assert not caplog.records
    with pytest.raises(ValueError, match="contracts: True, False or 'raise'"):
        Watch(Net(), contracts="loudly")


def test_it_raises_at_the_end_of_the_step_which_has_been_taken():
    reference, loop = Loop(contracts=False), Loop(contracts="raise")
    reference.run(never_clears, 2)
    with pytest.raises(ContractError, match=r"step 1: gradients-not-cleared in first\.weight") as raised:
        loop.run(never_clears, 6)
    assert raised.value.finding == loop.watch.findings[0]
    assert bits_of(state_of([loop.model], loop.optimizer)) == bits_of(state_of([reference.model], reference.optimizer))
    loop.run(never_clears, 3)  # reported once: the loop may go on


def test_a_warning_raises_nothing():
    loop = Loop(Net(dropout=0.1).eval(), contracts="raise")
    assert [found.severity for found in loop.run(train)] == ["warning"]


@pytest.mark.parametrize("every", [0, 2, 50])
def test_asking_changes_no_bit(every: int):
    def final(contracts: bool) -> dict:
        torch.manual_seed(0)
        loop = Loop(Net(dropout=0.3), contracts=contracts, statistics_every=every)
        loop.run(train, 7)
        return bits_of(state_of([loop.model], loop.optimizer)) | {"random": bytes(torch.get_rng_state())}

    assert final(True) == final(False)


def test_a_question_that_fails_is_asked_no_more_and_the_loop_goes_on(monkeypatch, caplog):
    def fails(self, step) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr(Order, "after_backward", fails)
    loop = Loop()
    assert loop.run(never_clears, 4) == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the contracts of order are asked no more") and "KeyError" in line


def test_the_question_of_ranks_is_not_left_out_on_one_of_them():
    from diagnostics.contracts.ranks import Ranks

    class Failing(Ranks):
        def begin(self, step) -> None:
            raise ConnectionError("a rank is gone")

    loop = Loop()
    contracts = loop.watch._watched.contracts._contracts
    contracts._families[:] = [Failing(contracts._scene, contracts._reports)]
    with pytest.raises(ConnectionError):
        loop.run(train, 1)


def test_a_finding_says_where():
    places = {"layer": "a", "parameter": "b", "subject": "c"}
    for key, value in places.items():
        finding = Finding("rule", "alarm", 0, "evidence", "advice", **{key: value})
        assert finding.where == value and f"in {value}" in str(finding) and finding.to_json()[key] == value


def test_families_do_not_copy_with_a_model():
    family = Family(None, None)  # type: ignore[arg-type]
    import copy

    assert copy.deepcopy(family) is family
