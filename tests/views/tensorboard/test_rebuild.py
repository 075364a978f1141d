"""A view rebuilt: from metrics.jsonl and samples/, next to the one that is there."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diagnostics.records.lines import RecordWriter, append_record
from shadowlab.console.reporter import Reporter
from shadowlab.drawing import save_picture
from shadowlab.errors import UserError
from shadowlab.views.tensorboard import rebuild
from shadowlab.views.tensorboard.rebuild import rebuild_board
from shadowlab.views.tensorboard.serve import run_tensorboard

NAMES = ("conv_in", *(f"down_blocks.{b}.{layer}" for b in range(2) for layer in ("conv1", "conv2")))


def record(step: int) -> dict[str, Any]:
    statistics = {"norm": float(step), "mean": 0.5, "std": 1.0, "max_abs": math.nan, "fraction_zero": 0.0}
    statistics |= {"num_nonfinite": 0, "headroom_bits": 9.0}
    layers = {name: {"activation": statistics, "gradient": statistics} for name in NAMES}
    parameters = {f"{name}.weight": {"gradient_norm": None, "update_ratio": 1e-3} for name in NAMES}
    return {"kind": "train", "step": step, "loss": 1.0, "layers": layers, "parameters": parameters}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twelve measured steps, a stage's verdict, three pictures, and a view with something of its own."""
    run = tmp_path / "run"
    run.mkdir()
    writer = RecordWriter(run / "metrics.jsonl")
    writer.write({"kind": "header", "stage": "train"})
    for step in range(1, 13):
        writer.write(record(step))
    writer.close()
    append_record(run / "metrics.jsonl", {"kind": "stage", "stage": "train", "step": 12, "passed": True})
    for name in ("step-00000004", "step-00000012", "light-sweep-step-00000012"):
        save_picture(torch.rand(3, 20, 30), run / "samples" / f"{name}.png")
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events.out.tfevents.1").write_bytes(b"old")
    return run


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_pictures_and_words_come_along_and_the_old_view_stays(run: Path) -> None:
    rebuilt = rebuild_board(run)
    assert (rebuilt.folder, rebuilt.num_records, rebuilt.num_pictures) == (run / "tensorboard-rebuilt", 14, 3)
    assert (run / "tensorboard" / "events.out.tfevents.1").read_bytes() == b"old"
    seen = read(rebuilt.folder)
    assert [(e.step, e.width, e.height) for e in seen.Images("00 validation/comparison")] == [(4, 30, 20), (12, 30, 20)]
    assert [e.step for e in seen.Images("00 validation/light_sweep")] == [12]
    assert [e.step for e in seen.Images("00 run, heat map of gradient_norm/all layers")] == [4, 8, 12]
    assert "stage/train/text_summary" in seen.Tags()["tensors"]
    assert "custom_scalars__config__" in seen.Tags()["tensors"]
    assert [e.step for e in seen.Scalars("03 down_blocks.1/gradient_norm/conv2")] == list(range(1, 13))
    again = read(rebuild_board(run).folder)  # in place of the first, not next to it
    assert again.Tags()["scalars"] == seen.Tags()["scalars"]
    assert len(again.Scalars("train/loss")) == 12
    assert not (run / "tensorboard-rebuilt.tmp").exists()


def test_chosen_layers_have_every_statistic(run: Path) -> None:
    rebuilt = rebuild_board(run, ["down_blocks.1.*"])
    assert set(rebuilt.in_full) == {f"down_blocks.1.{n}" for n in ("conv1", "conv2", "conv1.weight", "conv2.weight")}
    seen = read(rebuilt.folder)
    assert len(seen.Scalars("03 down_blocks.1/gradient_mean/conv1")) == 12
    assert "02 down_blocks.0/gradient_mean/conv1" not in seen.Tags()["scalars"]
    assert set(rebuild_board(run, ["conv_in"]).in_full) == {"conv_in", "conv_in.weight"}


def test_what_cannot_be_rebuilt_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--layers mid\.\*: matches no layer .* blocks are conv_in, down_blocks.0"):
        rebuild_board(run, ["conv_in", "mid.*"])
    assert not list(run.glob("tensorboard-rebuilt*"))
    with pytest.raises(UserError, match="metrics.jsonl: missing, so there is nothing to rebuild from"):
        rebuild_board(tmp_path)
    (run / "samples" / "step-00000013.png").write_bytes(b"cut")
    with pytest.raises(UserError, match="step-00000013.png: cannot be read as a picture; remove it"):
        rebuild_board(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match="metrics.jsonl:15: not a JSON record"):
        rebuild_board(run)


@pytest.mark.parametrize("name", ["tensorboard-rebuilt", "tensorboard-rebuilt.tmp"])
def test_a_file_in_the_way_is_named_and_stays(run: Path, name: str) -> None:
    (run / name).write_text("mine")
    with pytest.raises(UserError, match=rf"run.{name}: in the way of the new view.*; move or remove it"):
        rebuild_board(run)
    assert (run / name).read_text() == "mine"


@pytest.mark.parametrize("what", [OSError(28, "No space left on device"), OSError(30, "Read-only file system", "x/y")])
def test_a_disk_that_refuses_is_one_line_and_leaves_the_old_view(
    run: Path, monkeypatch: pytest.MonkeyPatch, what: OSError
) -> None:
    before = sorted(rebuild_board(run).folder.iterdir())

    def refuse(*_: Any) -> None:
        raise what

    monkeypatch.setattr(rebuild.Board, "write", refuse)
    with pytest.raises(UserError, match=rf"{what.filename or 'rebuilt.tmp'}: {what.strerror}, so .* free the disk"):
        rebuild_board(run)
    assert sorted((run / "tensorboard-rebuilt").iterdir()) == before
    assert not (run / "tensorboard-rebuilt.tmp").exists()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """The first event folder that TensorBoard would be started on by a link, and its title."""
    places = []

    def launch(logdir: Path, title: str, *_: Any) -> str:
        places.append((next(link.resolve() for link in logdir.iterdir()), title))
        raise KeyboardInterrupt

    monkeypatch.setattr("shadowlab.views.tensorboard.serve._launch", launch)
    return places


def ask(place: Path | str, **asked: Any) -> None:
    defaults: dict[str, Any] = {"port": None, "host": "localhost", "rebuild": False, "layers": []}
    run_tensorboard(str(place), Reporter(), **defaults | asked)


def test_a_run_whose_view_was_deleted_can_be_rebuilt_and_served(
    run: Path, served: list[tuple[Path, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(place: Path, **asked: Any) -> str:
        with pytest.raises(KeyboardInterrupt):
            ask(place, **asked)
        return " ".join(capsys.readouterr().out.split())

    assert "is as it was" in serve(run, rebuild=True)
    shutil.rmtree(run / "tensorboard")
    assert "is as it was" not in serve(run, layers=["conv_in"])
    serve(run / "metrics.jsonl", rebuild=True)
    serve(run / "tensorboard-rebuilt", rebuild=True)
    assert served == [(run / "tensorboard-rebuilt", "run")] * 4
    with pytest.raises(UserError, match="holds several runs; name the one"):
        ask(run.parent, rebuild=True)
    with pytest.raises(UserError, match="no such run"):
        ask(run.parent / "absent", rebuild=True)


def test_the_view_that_is_named_is_served(
    run: Path, served: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's own by default; its title is the run's name."""
    rebuild_board(run)
    (run / "config.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(run.parent)
    views = (run / "tensorboard-rebuilt", run / "tensorboard", run, "run/tensorboard-rebuilt", run.parent)
    for place in views:
        with pytest.raises(KeyboardInterrupt):
            ask(place)
    own = [run / "tensorboard-rebuilt", run / "tensorboard", run / "tensorboard", run / "tensorboard-rebuilt"]
    assert served == [*((view, "run") for view in own), (run / "tensorboard", run.parent.name)]


@pytest.mark.parametrize("given", ["mine", "runs/mine", "mine/tensorboard", "runs/mine/tensorboard-rebuilt"])
def test_a_view_that_is_gone_is_said_to_be_gone(
    run: Path, served: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """By its name or its path; what the message says to do does it."""
    monkeypatch.chdir(run.parent)
    Path("runs").mkdir()
    run.rename("runs/mine")
    if not given.endswith("rebuilt"):  # the other one is there, but it is not what was asked for
        shutil.rmtree("runs/mine/tensorboard")
    view = "runs/mine/tensorboard-rebuilt" if given.endswith("rebuilt") else "runs/mine/tensorboard"
    with pytest.raises(UserError) as reported:
        ask(given)
    fix = "`shadowlab tensorboard runs/mine --rebuild` rebuilds it from metrics.jsonl"
    assert str(reported.value) == f"{view}: missing; {fix}"
    with pytest.raises(KeyboardInterrupt):
        ask("runs/mine", rebuild=True)
    assert served == [(Path("runs/mine/tensorboard-rebuilt").resolve(), "mine")]
