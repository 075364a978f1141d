"""Every fix that a verdict of the corpus tells mends its case: three steps are finite and still learn."""

import re
import warnings
from typing import Any

import pytest
import torch

from diagnostics import explain
from shadowlab.bench.corpus import FAULTS, Fault
from shadowlab.views.page.wording import with_links
from tests.diagnostics.tracing.fixes.all import FIXES
from tests.diagnostics.tracing.fixes.applied import Training, edited, verdict_of

ISSUE = re.compile(r"[\w-]+#\d+")
CASES = [fault for fault in FAULTS if fault.expected is not None]


@pytest.mark.usefixtures("own_group")
@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.name)
def test_the_fix_mends_its_case(fault: Fault):
    verdict = verdict_of(fault)
    fix = FIXES.get(fault.name)
    if fix is None:
        told = "" if verdict is None else verdict.fix
        assert "no fix is known" in told, f"apply this in tests/diagnostics/tracing/fixes: {told}"
        return
    if verdict is not None:  # whether there is one, other tests ask
        assert any(part in verdict.fix for part in fix.says.split("||")), verdict.fix
        assert len(ISSUE.findall(verdict.fix)) == sum(address is not None for _, address in with_links(verdict.fix))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = Training(edited(fault, fix).start())
        scene = training.scene

        def explained(step: Any) -> None:
            found = explain(step, model=scene.model, optimizer=scene.optimizer, batch=scene.batch)
            assert found is None, str(found)

        training.step(explained)
        if fix.then is not None:
            fix.then(scene)
            training = Training(scene)
        for _ in range(fix.steps - (fix.then is None)):
            training.step(lambda step: step())
    assert training.bad(gradients=fix.steps == 3) == []
    assert training.moved
    falls = bool(training.losses) and training.losses[-1] < training.losses[0]
    assert training.slope < 0 or falls or fix.drawn, (training.slope, training.losses)


def test_fixes_are_of_cases():
    assert set(FIXES) <= {fault.name for fault in FAULTS if fault.expected is not None}
