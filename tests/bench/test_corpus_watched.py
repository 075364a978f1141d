"""The same cases in a loop under Watch: it trips, says what explain says, and keeps nothing of the step."""

import contextlib
import io
import runpy
from pathlib import Path

import pytest
import torch

from shadowlab.bench.case_trial import watched
from shadowlab.bench.corpus import FAULTS, Fault
from shadowlab.stages.why.kept_operator import read_call


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_case_in_a_watched_loop(fault: Fault, tmp_path: Path):
    trial = watched(fault, tmp_path)
    assert not trial.wrong, f"{trial.wrong}\n{trial.verdict}"
    if trial.verdict is None:
        return
    (incident,) = tmp_path.iterdir()
    script = incident / "repro.py"
    if script.exists():
        read_call(script.with_name("operator.pt"), torch.device("cpu"))  # `shadowlab why` runs what the corpus leaves
        with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == 0, printed.getvalue()
