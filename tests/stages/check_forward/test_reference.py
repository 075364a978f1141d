"""check-forward's comparison with the reference: sound code passes in every arithmetic, and each fault is named.

The golden run is the real one on a smaller topology, so that one costs a second.
"""

import ast
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from shadowlab.checks import Check
from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.models import unet
from shadowlab.quantities import Quantity, agreement
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.settings.files import load_config
from shadowlab.stages.check_forward import step_checks
from shadowlab.stages.check_forward.golden_run import golden_config
from shadowlab.stages.train import setup
from shadowlab.stages.train.train import run_train
from shadowlab.tasks import open_task
from tests import tiny
from tests.stages.check_forward import faults
from tests.stages.check_forward.faults import Fault

ROOT = Path(__file__).parents[3]
ALL = (
    step_checks.GOLDEN,
    step_checks.FUNCTIONS,
    step_checks.LATENTS,
    step_checks.METRICS,
    step_checks.STEPS,
    step_checks.JUDGED,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A UNet of two levels in place of tiny's three."""
    monkeypatch.setattr(unet, "architecture_config", lambda name: dict(tiny.HUB_CONFIG))
    monkeypatch.setattr(setup, "open_views", lambda *_, **__: [])  # drawing is not what is compared


def session_of(folder: Path, *settings: str) -> Session:
    config = load_config(options={"device": "cpu"}, assignments=[f"output_dir={folder}", *settings])
    run = RunFolder.create(config, "checked")
    return Session.open(config, run, SingleProcess(torch.device("cpu")), Reporter(active=False))


def checked(folder: Path, *settings: str) -> list[Check]:
    return step_checks.step_checks(session_of(folder, *settings), run_train)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("precision=bf16", "train.ema_decay=null", "seed=3"),
        ("precision=fp16", "train.noise_share=0.8"),
        ("train.gradient_accumulation_steps=4", "model.gradient_checkpointing=true", "data.latents=somewhere"),
    ],
    ids=lambda settings: " ".join(settings) or "fp32",
)
def test_sound_code_passes(tmp_path: Path, settings: tuple[str, ...]) -> None:
    checks = checked(tmp_path, *settings)
    assert [check.name for check in checks] == list(ALL)
    assert [check.seen for check in checks if not check.passed] == []


def test_float16_weights_are_not_compared(tmp_path: Path) -> None:
    """AdamW divides by an eps that is 0 there: the rest is proved all the same."""
    checks = checked(tmp_path, "precision=fp16-pure", "allow_unsafe=true")
    assert [check.name for check in checks] == list(ALL[:4])
    assert all(check.passed for check in checks)


def failing(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.seen for check in checks if not check.passed}


def parts(folder: Path) -> tuple[Any, Any, Any, dict[str, str], Any]:
    session = session_of(folder)
    reference = session.task.reference
    paths = {}
    for layout in reference.layouts:
        (folder / layout).mkdir()
        paths[layout] = reference.write(layout, folder / layout)
    config = golden_config(session.config, reference, paths["folder"], folder)
    return session, reference, config, paths, open_task(config, torch.device("cpu"))


@pytest.mark.parametrize("fault", faults.FUNCTIONS, ids=lambda fault: fault.name)
def test_a_wrong_function_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    session, reference, config, _, task = parts(tmp_path)
    fault.put_in(monkeypatch)
    check = step_checks.guarded("", lambda: step_checks._functions(session.config, config, reference, task))
    assert not check.passed
    assert fault.place in check.seen


@pytest.mark.parametrize("fault", faults.METRICS, ids=lambda fault: fault.name)
def test_a_wrong_metric_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    _, reference, _, _, task = parts(tmp_path)
    fault.put_in(monkeypatch)
    check = step_checks.guarded("", lambda: reference.metrics(task))
    assert not check.passed
    assert fault.place in check.seen


@pytest.mark.parametrize("fault", faults.READING, ids=lambda fault: fault.name)
def test_wrong_reading_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    _, reference, config, paths, task = parts(tmp_path)
    fault.put_in(monkeypatch)
    if fault.attribute in ("read_shadow", "read_mask", "read_object"):
        role = fault.attribute.removeprefix("read_")
        changed = getattr(fault.owner, fault.attribute)
        monkeypatch.setitem(sys.modules["shadowlab.tasks.shadow.pictures"]._READERS, role, changed)
    quiet = Reporter(active=False)
    path = paths[reference.layouts[0]]
    encoded = step_checks._encoded(config, reference, path, tmp_path, quiet, task)
    check = step_checks.guarded("", lambda: chain(step_checks._read(config, reference, paths), encoded))
    assert not check.passed
    assert fault.place in check.seen


@pytest.mark.parametrize("fault", faults.RUN, ids=lambda fault: fault.name)
def test_a_wrong_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    session = session_of(tmp_path, *fault.settings)
    reference = session.task.reference
    (tmp_path / "data").mkdir()
    path = reference.write("folder", tmp_path / "data")
    config = golden_config(session.config, reference, path, tmp_path)
    fault.put_in(monkeypatch)
    checks = step_checks.trained(config, session.processes, run_train, Reporter(active=False))
    found = failing(checks)
    assert len(found) == 1
    assert fault.place in next(iter(found.values())), found


@pytest.mark.parametrize("file", ["stages/check_forward/reference.py", "tasks/shadow/reference.py"])
def test_the_reference_shares_no_code(file: str) -> None:
    tree = ast.parse((ROOT / "shadowlab" / file).read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add((node.module or "").split(".")[0])
    assert names <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: -x, "negated"),
        (lambda x: 2 * x, "2 times"),
        (lambda x: x.flip(0), "samples exchanged: 2, 1, 0"),
        (lambda x: x.flip(1), "channels exchanged: 1, 0"),
        (lambda x: x.flip(-1), "mirrored left to right"),
        (lambda x: x.transpose(-1, -2), "transposed"),
        (lambda x: x.clamp(0.2, 0.8), "clamped to [0.2, 0.8]"),
        (lambda x: (x >= 0.5).float(), "binarised"),
        (lambda x: 1 - x, "inverted"),
        (lambda x: 2 * x - 1, "2 x - 1"),
        (lambda x: x * 0, "zero everywhere"),
        (lambda x: x[:1].expand_as(x), "the same for every sample"),
        (lambda x: x[:, :1], "shape (3, 1, 4, 4), not (3, 2, 4, 4)"),
        (lambda x: x + torch.arange(3.0).view(3, 1, 1, 1) ** 2, "in rows 1, 2 of 3"),
    ],
)
def test_a_difference_is_said_in_words(change: Any, words: str) -> None:
    wanted = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    check = agreement(
        "all", [Quantity("a", "f.py, g", wanted, wanted), Quantity("b", "h.py, k", change(wanted), wanted)]
    )
    assert not check.passed
    assert words in check.seen
    assert "h.py, k" in check.seen
