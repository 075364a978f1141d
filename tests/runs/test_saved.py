"""What is said to be saved is what a resume would take by its name."""

from pathlib import Path

import pytest

from shadowlab.runs import resume_point
from shadowlab.training.checkpoint_files import step_of

NAMES = (
    "step-00000020",
    "step-00000020-best",
    "step-30",
    "step-\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663",
    "step-",
)


@pytest.mark.parametrize("without", [(), ("step-00000020",)])
def test_only_names_of_checkpoints_count(tmp_path: Path, without: tuple[str, ...]) -> None:
    names = [name for name in NAMES if name not in without]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "COMPLETE").touch()
    steps = [step for name in names if (step := step_of(Path(name))) is not None]
    said = "step 20 is saved (step-00000020), a resume starts there"
    assert resume_point(tmp_path) == (said if steps else "nothing is saved yet, a resume starts at step 0")
    assert steps == ([] if without else [20])
