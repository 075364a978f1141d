"""What a check found is known again by the data's fingerprint, and train asks for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shadowlab.stages.train.data_check as data_check
from shadowlab.console import Reporter
from shadowlab.distributed import SingleProcess
from shadowlab.errors import StageFailedError, UserError
from shadowlab.examination import CheckReport, keep_result, known_result
from shadowlab.examination.known import keep_picture
from shadowlab.runs import RunFolder
from shadowlab.session import Session
from shadowlab.settings import load_config
from shadowlab.tasks.shadow.dataset import EMBEDDED_PATH
from tests.tasks.shadow.sound import make_folder


class Told(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(active=False)
        self.lines: list[str] = []

    def say(self, text: str, style: str | None = None) -> None:
        self.lines.append(text)

    def without_result(self) -> Reporter:
        return Reporter(active=False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def session(tmp_path: Path, data: Path, **how: Any) -> tuple[Session, Told]:
    config = load_config(options={"data.path": str(data), "output_dir": str(tmp_path / "runs"), **how})
    run, told = RunFolder.create(config, f"run-{len(list(tmp_path.glob('runs/*')))}"), Told()
    return Session.open(config, run, SingleProcess(torch.device("cpu")), told), told


def report(num_examined: int, *, errors: tuple[str, ...] = ()) -> CheckReport:
    return CheckReport(90, 9, [], [], num_examined=num_examined, errors=list(errors), fingerprint="f")


def half_turned(folder: Path) -> Path:
    """24 samples of the embedded set whose phi says where the shadow falls."""
    metadata = json.loads((EMBEDDED_PATH / "metadata.json").read_text())
    chosen = {name: metadata[name] for name in sorted(metadata)[:24]}
    for role in ("objects", "masks", "shadows"):
        (folder / role).mkdir(parents=True)
        for name in chosen:
            (folder / role / f"{name}.png").write_bytes((EMBEDDED_PATH / role / f"{name}.png").read_bytes())
    turned = {name: {**light, "phi": (light["phi"] + 180) % 360} for name, light in chosen.items()}
    (folder / "metadata.json").write_text(json.dumps(turned))
    return folder


def test_a_result_is_known_by_task_and_fingerprint(cache: Path) -> None:
    config = load_config()
    assert known_result(config, "f") is None
    keep_result(config, report(50, errors=("one", "two")))
    known = known_result(config, "f")
    assert known is not None and (known.passed, known.first, known.count, known.num_examined) == (False, "one", 2, 50)
    assert known_result(config, "g") is None


def test_a_quick_check_does_not_hide_what_a_whole_one_found(cache: Path) -> None:
    config = load_config()
    keep_result(config, report(90, errors=("one",)))
    keep_result(config, report(10))
    known = known_result(config, "f")
    assert known is not None and not known.passed
    keep_result(config, report(90))
    known = known_result(config, "f")
    assert known is not None and known.passed


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"passed": 1}', b"\xff"])
def test_a_damaged_note_is_not_believed(cache: Path, damage: bytes) -> None:
    config = load_config()
    keep_result(config, report(90))
    [note] = (cache / "shadowlab/checked").iterdir()
    note.write_bytes(damage)
    assert known_result(config, "f") is None


def test_a_cache_that_cannot_be_written_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    keep_result(load_config(), report(90))
    assert known_result(load_config(), "f") is None and keep_picture("f", np.zeros((8, 8, 3), np.uint8)) == ""


def test_the_picture_is_kept(cache: Path) -> None:
    picture = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    assert np.array_equal(np.asarray(Image.open(keep_picture("f" * 64, picture))), picture)


def test_train_is_stopped_by_a_wrong_convention_and_goes_on_once_it_is_right(cache: Path, tmp_path: Path) -> None:
    folder = half_turned(tmp_path / "set")
    opened, told = session(tmp_path, folder)
    with pytest.raises(StageFailedError, match=r"data check: .*phi = \(phi \+ 180\) % 360.*--skip-stages") as caught:
        data_check.prove_data(opened)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    with pytest.raises(StageFailedError):  # what failed is looked at again
        data_check.prove_data(opened)
    metadata = json.loads((folder / "metadata.json").read_text())
    right = {name: {**light, "phi": (light["phi"] + 180) % 360} for name, light in metadata.items()}
    (folder / "metadata.json").write_text(json.dumps(right))
    opened, told = session(tmp_path, folder)
    data_check.prove_data(opened)
    assert "data check: 24 samples, nothing wrong" in told.lines
    told.lines.clear()
    data_check.prove_data(opened)
    assert told.lines == [f"data check: passed before (24 of 24 samples of {folder})"]


def test_train_is_stopped_by_what_it_could_not_read(cache: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "set", 3)
    (tmp_path / "set/shadows/img_00001.png").write_bytes(b"text")
    opened, _ = session(tmp_path, tmp_path / "set")
    with pytest.raises(UserError, match="data check: img_00001: shadows/img_00001.png: not a PNG") as caught:
        data_check.prove_data(opened)
    assert caught.value.exit_code == 2


def test_of_a_large_set_train_examines_some_and_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "set", 11)
    monkeypatch.setattr(data_check, "QUICK", 5)
    opened, told = session(tmp_path, tmp_path / "set")
    data_check.prove_data(opened)
    assert (
        "examining at most 5 samples" in told.lines[0]
        and told.lines[-1] == "data check: 5 of 11 samples, nothing wrong"
    )
    data_check.prove_data(opened)
    assert told.lines[-1].startswith("data check: passed before (5 of 11")
