"""The same cases in a loop under Watch: it trips, says what explain says, and keeps nothing of the step."""

import contextlib
import io
import runpy
import warnings
from pathlib import Path

import pytest
import torch

from diagnostics import NonFiniteError, Watch
from diagnostics.modules import models_in
from shadowlab.bench.corpus import FAULTS, Fault
from shadowlab.bench.faults import score
from shadowlab.stages.why.kept_operator import read_call
from tests.diagnostics.states import bits_of, state_of

# A gradient scaler leaves such a step out, as it does while it looks for its scale.
SKIPPED = ("skips_hide_backward_nan",)
# What only a later operator would show has not run: the watch stops before the optimizer moves.
LESS = {"clip_by_hand_of_zero": {"place"}}
# Buffers of a model that has no parameter of its own, written after the optimizer: found, and reported as not restored.
MOVED = ("buffer_average_divides_by_zero",)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_case_in_a_watched_loop(fault: Fault, tmp_path: Path):
    torch.manual_seed(0)
    scene = fault.build()
    models = models_in(scene.model)
    before = bits_of(state_of(models))
    watch = Watch(models, scene.optimizer, incidents=tmp_path)
    error = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            watch.step(scene.step, batch=scene.batch)
        except NonFiniteError as caught:
            error = caught
    if fault.expected is None or fault.name in SKIPPED:
        assert error is None, error
        return
    assert error is not None
    less = LESS.get(fault.name, set())
    right = {field: found for field, found in score(fault, error.verdict).items() if field not in less}
    assert False not in right.values(), f"{right}\n{error}"
    assert error.verdict.reproducible is True
    assert error.is_restored == (fault.name not in MOVED)
    if error.is_restored:
        after = bits_of(state_of(models))
        assert not [name for name in before if before[name] != after[name]]
    assert error.incident is not None
    script = error.incident / "repro.py"
    if script.exists():
        read_call(script.with_name("operator.pt"), torch.device("cpu"))  # `shadowlab why` runs what the corpus leaves
        with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == 0, printed.getvalue()
