"""Two real processes next to the specification."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from shadowlab.distributed import Processes
from shadowlab.stages.check_forward.golden_run import golden_config
from shadowlab.stages.check_forward.pair import pair_checks
from shadowlab.stages.check_forward.step_checks import trained
from shadowlab.stages.train.train import run_train
from tests.stages.check_forward.test_reference import session_of


def alone(session: Any, **options: Any) -> Any:
    """Trains without the other process: what is wrapped is the bare model."""

    def wrap(processes: Processes, model: nn.Module) -> nn.Module:
        return model

    Processes.wrap = wrap  # type: ignore[method-assign]  # in a process that is gone afterwards
    return run_train(session, **options)


@pytest.mark.parametrize(("strategy", "train", "is_right"), [("fsdp2", run_train, True), ("ddp", alone, False)])
def test_processes_are_compared_each_by_itself(tmp_path: Path, strategy: str, train: Any, is_right: bool) -> None:
    session = session_of(tmp_path, f"distributed.strategy={strategy}")
    reference = session.task.reference
    (tmp_path / "data").mkdir()
    config = golden_config(session.config, reference, reference.write("folder", tmp_path / "data"), tmp_path)
    checks = pair_checks(config, trained, train, tmp_path)
    assert len(checks) == 2 and all(check.passed for check in checks) == is_right, checks
    if not is_right:
        assert any("gradient" in check.seen for check in checks), checks
