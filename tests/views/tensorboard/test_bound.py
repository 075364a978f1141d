"""Event files of a run stay below the bound, whatever its length and pictures, cut off and resumed however often."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diagnostics.board import Purse, selection
from shadowlab.views.tensorboard import board as boards
from shadowlab.views.tensorboard.board import Board
from shadowlab.views.tensorboard.named_runs import NamedRuns

SMALL = {"credit": 6_000, "total": 30_000, "spread": 200, "debt": 3_000}


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> int:
    """Small budgets; what the files of a run may hold together."""
    for name in ("NUMBERS", "JUDGED", "DETAILS"):
        monkeypatch.setattr(selection, name, SMALL)
    words = {"credit": 3_000, "total": 3_000, "spread": 200}
    monkeypatch.setattr(selection, "WORDS_BYTES", words)
    pictures = {"credit": 40_000, "total": 40_000, "spread": 200, "debt": 20_000}
    monkeypatch.setattr(boards, "PICTURES", pictures)
    return 3 * Purse(**SMALL).bound + Purse(**words).bound + Purse(**pictures).bound


def record(step: int) -> dict[str, Any]:
    part = {"norm": float(step), "max_abs": 1.0, "fraction_zero": 0.1, "num_nonfinite": 0, "headroom_bits": 9.0}
    layers = {f"blocks.{i}.conv": {"activation": part, "gradient": part} for i in range(6)}
    own: dict[str, Any] = {"kind": "train", "step": step, "loss": 1.0, "grad_norm": 2.0}
    return own | ({"layers": layers} if step % 5 == 0 else {})


def run(board: Board, first: int, last: int) -> None:
    for step in range(first, last + 1):
        board.write(record(step))
        if step % 10 == 0:
            board.write({"kind": "validation", "step": step, "loss": 1.0, "rmse": 0.1})
            board.image("validation/comparison", torch.rand(3, 16, 16), step)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def overhead(folder: Path) -> int:
    """Of a file its first event; of an event what stands around its content."""
    return 200 * sum(1 for file in folder.rglob("*") if file.is_file()) + 40 * 3_000


@pytest.mark.parametrize("num_steps", [50, 400, 3_000])
def test_a_run_of_any_length(bound: int, tmp_path: Path, num_steps: int) -> None:
    board = Board(tmp_path)
    run(board, 1, num_steps)
    board.close()
    assert size_of(tmp_path) <= bound + overhead(tmp_path)
    seen = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert seen.Scalars("train/loss")[-1].step == num_steps
    assert seen.Scalars("05 blocks.4/gradient_norm/conv")[-1].step == num_steps
    assert seen.Images("00 validation/comparison")[-1].step == num_steps, "the last picture is missing"


def test_a_run_that_is_cut_off_again_and_again(bound: int, tmp_path: Path) -> None:
    """Each session writes 60 steps, is killed, and begins again ten steps further: most is written several times."""
    sizes = []
    for session in range(40):
        done = 10 * session
        board = Board(tmp_path, resumed_at=done)
        for step in range(1, done + 1):
            board.remember(record(step))
        run(board, done + 1, done + 60)
        board.flush()  # no close: it is killed
        sizes.append(size_of(tmp_path))
    assert max(sizes) <= bound + overhead(tmp_path)


def test_runs_are_shown_by_name_and_new_ones_appear(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "tensorboard").mkdir(parents=True)
    with NamedRuns(tmp_path / "first" / "tensorboard", tmp_path / "first") as one:
        assert {link.name: link.resolve() for link in one.folder.iterdir()} == {
            "first": tmp_path / "first" / "tensorboard"
        }
    assert not one.folder.exists() and (tmp_path / "first" / "tensorboard").is_dir()
    with NamedRuns(tmp_path, tmp_path) as all_of_them:
        assert {link.name for link in all_of_them.folder.iterdir()} == {"first", "second"}
        (tmp_path / "third" / "tensorboard").mkdir(parents=True)
        all_of_them._link()
        assert len(list(all_of_them.folder.iterdir())) == 3
