"""`shadowlab evaluate`: numbers that are right, once for each sample, the same however often it was stopped."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from cli.main import app
from diagnostics.records import encode
from shadowlab.console import Reporter
from shadowlab.errors import StageFailedError, UserError
from shadowlab.evaluation import judging as module
from shadowlab.evaluation import methods
from shadowlab.evaluation.judging import OPTIONS, PAGE, RESULT
from shadowlab.evaluation.lines import PER_IMAGE, read_per_image
from shadowlab.settings import load_config
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow.evaluation import PUBLISHED, TRACKS
from shadowlab.tasks.shadow.samples import Batch
from tests import warm
from tests.evaluation.judged import LIGHTS, files_of, judged, make_benchmark, small_run
from tests.runs import started
from tests.tasks.shadow.sound import make_folder, write_metadata

ROOT = Path(__file__).parents[2]
FEW: dict[str, Any] = {"steps": (1, 2), "num_seeds": 2, "control_objects": 1}
EXACT = {"soft_iou": 1.0, "soft_iou_without_haze": 1.0, "rmse": 0.0, "si_rmse": 0.0, "zncc": 1.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small run's folder, in which all is judged."""
    root = small_run(tmp_path_factory.mktemp("judged") / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """An evaluation that nothing disturbed. Do not write into it."""
    judged("fallen", world / "whole", **FEW)
    return world / "whole"


def means(document: dict[str, Any], track: str, method: str) -> dict[str, float]:
    return {name: one["mean"] for name, one in document["tracks"][track]["methods"][method].items()}


def test_the_truth_is_perfect_and_black_is_nothing_on_every_track(tmp_path: Path) -> None:
    tar = make_benchmark(tmp_path / "benchmark.tar")
    found = judged("truth", tmp_path / "out", data=str(tar), image_size=32).document
    assert {name: track["num_samples"] for name, track in found["tracks"].items()} == {
        name: len(lights) for name, lights in LIGHTS.items()
    }
    for track in found["tracks"]:
        truth = found["tracks"][track]["methods"]["truth"]
        for name, value in EXACT.items():
            assert truth[name] == {"mean": value, "std": 0.0, "low": value, "high": value}
        black = means(found, track, "all black")
        assert black["soft_iou"] == black["soft_iou_without_haze"] == black["zncc"] == 0.0
        assert {"truth", "all black", "drop shadow", "inflated silhouette"} == found["tracks"][track]["methods"].keys()
    assert found["published"] == {} and found["weights"] == "none" and "truth" not in found["control"]
    assert any("Never choose" in note for note in found["notes"])


def test_each_metric_is_what_numpy_makes_of_it() -> None:
    rng = np.random.default_rng(0)
    p, g = (np.float32(rng.uniform(0, 1, (3, 24, 20)) ** 4) for _ in range(2))
    batch = Batch(["a", "b", "c"], *(torch.from_numpy(one)[:, None] for one in (g, g, g)), torch.zeros(3, 3))
    found = open_task(load_config()).evaluation.judge(torch.from_numpy(p)[:, None], batch)
    for i, (x, y) in enumerate(zip(np.float64(p), np.float64(g), strict=True)):
        clear_x, clear_y = np.where(x < np.float32(0.02), 0, x), np.where(y < np.float32(0.02), 0, y)
        wanted = {
            "soft_iou": np.minimum(x, y).sum() / np.maximum(x, y).sum(),
            "soft_iou_without_haze": np.minimum(clear_x, clear_y).sum() / np.maximum(clear_x, clear_y).sum(),
            "rmse": np.sqrt(np.mean((x - y) ** 2)),
            "si_rmse": np.sqrt(np.mean((x * (x * y).sum() / (x * x).sum() - y) ** 2)),
            "zncc": np.corrcoef(x.ravel(), y.ravel())[0, 1],
            "psnr": -10 * np.log10(np.mean((x - y) ** 2)),
            "ssim": similarity(x, y),
        }
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            tolerance = 1e-5 if name == "psnr" else 1e-6  # decibels: about 10, of float32
            assert float(found[name][i]) == pytest.approx(value, abs=tolerance), name


def similarity(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM (Wang et al., 2004) by a Gaussian window of sigma 1.5 and radius 5, the picture mirrored at its edges."""

    def mean(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, 1.5, radius=5, mode="mirror")

    a, b = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - a * a, mean(y * y) - b * b, mean(x * y) - a * b
    return float(np.mean((2 * a * b + 1e-4) * (2 * cov + 9e-4) / ((a**2 + b**2 + 1e-4) * (var_x + var_y + 9e-4))))


def test_the_summary_is_that_of_the_lines_and_the_lines_of_the_samples(whole: Path) -> None:
    lines, document = list(read_per_image(whole)), json.loads((whole / RESULT).read_text())
    assert [line["sample"] for line in lines] == sorted(line["sample"] for line in lines) and len(lines) == 8
    for trained, track in ((False, "all"), (True, "all, trained objects")):
        values = np.array([x["methods"]["model, 1 step"]["rmse"] for x in lines if x["trained_on"] is trained])
        found = document["tracks"][track]["methods"]["model, 1 step"]["rmse"]
        assert values.shape == (document["tracks"][track]["num_samples"], 2)
        assert found["mean"] == pytest.approx(values.mean(), abs=1e-12)
        assert found["std"] == pytest.approx(values.mean(axis=0).std(ddof=1), abs=1e-12)
        assert values.mean(axis=1).min() <= found["low"] <= found["mean"] <= found["high"]
    of_objects = {line["object"]: line["trained_on"] for line in lines}
    assert sorted(of_objects.values()) == [False, True, True, True]  # a fifth of four objects, at least one
    assert document["weights"] == "ema" and any("EMA" in note for note in document["notes"])
    assert ["control" in line for line in lines] == [True] + [False] * 7
    assert {"model, 1 step", "model, 2 steps"} <= document["control"].keys()


def test_killed_and_resumed_by_several_the_files_are_the_same(whole: Path, world: Path) -> None:
    out = world / "killed"
    words = (
        "evaluate",
        "fallen",
        "--steps",
        "1,2",
        "--seeds",
        "2",
        "--control",
        "1",
        "--device",
        "cpu",
        "--out",
        str(out),
    )
    command = [sys.executable, "-m", "cli.main", *words, "--processes", "2"]
    ours = os.environ | {"PYTHONPATH": str(ROOT)}
    running = started(command, env=ours, start_new_session=True)
    until = time.monotonic() + 900
    while not any(part.stat().st_size for part in out.glob("part-*")):
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)
    kept = sum(len(part.read_bytes().splitlines()) for part in out.glob("part-*"))
    assert not (out / PER_IMAGE).exists() and 0 < kept < 8
    with next(out.glob("part-*")).open("ab") as part:
        part.write(b'{"number": 7, "sample": "obj_0003_li')  # torn, as a full disk leaves it
    done = warm.run(command, env=ours, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "samples are judged already" in done.stdout
    assert files_of(out) == files_of(whole)


def test_what_is_judged_is_not_judged_again(whole: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, done = world / "again", []
    original = module.judge_sample
    monkeypatch.setattr(module, "judge_sample", lambda s, n, **more: done.append(n) or original(s, n, **more))
    out.mkdir()
    lines = (whole / PER_IMAGE).read_bytes().splitlines(keepends=True)
    damaged = lines[5].replace(b'"rmse": [', b'"rmse": [0.5, ')  # a value too many
    (out / PER_IMAGE).write_bytes(b"".join([*lines[:3], damaged, *lines[6:]]))
    (out / OPTIONS).write_bytes((whole / OPTIONS).read_bytes())
    judged("fallen", out, **FEW)
    assert done == [3, 4, 5] and files_of(out) == files_of(whole)


def test_a_folder_of_another_evaluation_is_refused_in_one_line(whole: Path, world: Path) -> None:
    before = files_of(whole)
    for changes, word in (
        ({"num_seeds": 3}, "seeds 2 there, 3 here"),
        ({"steps": (1,)}, "judged 2 there, 1 here"),
        ({"weights": "raw"}, "model "),
        ({"baselines": False}, "methods "),
        ({"image_size": 64}, "image size 32 there, 64 here"),
        ({"data": "embedded"}, "data "),
    ):
        with pytest.raises(UserError, match="holds an evaluation of something else") as error:
            judged("fallen", whole, **{**FEW, **changes})
        assert word in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300
    assert files_of(whole) == before


def test_a_missing_track_is_an_error_and_a_folder_is_one_track(tmp_path: Path) -> None:
    tar = make_benchmark(tmp_path / "part.tar", without="vertical_direction_control")
    done = CliRunner().invoke(app, ["evaluate", "truth", "--data", str(tar), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and "no sample of the track vertical_direction_control" in done.output
    assert not (tmp_path / "out").exists()
    metadata = make_folder(tmp_path / "set", 2)
    write_metadata(tmp_path / "set", {name: {**one, "track": "softness_control"} for name, one in metadata.items()})
    found = judged("all-black", tmp_path / "folder", data=str(tmp_path / "set"), image_size=32, baselines=False)
    assert found.document["tracks"].keys() == {"all"}
    assert found.document["tracks"]["all"]["methods"].keys() == {"all black"}


def test_objects_of_another_set_with_the_same_names_are_other_objects(world: Path, tmp_path: Path) -> None:
    """Every render begins with obj_0000: names alone would flag a held-out set."""
    other = tmp_path / "other"
    make_folder(other, 8)  # of obj_0000 to obj_0003, too
    found = judged("fallen", tmp_path / "one", data=str(other), steps=(1,), num_seeds=1, baselines=False).document
    assert found["tracks"].keys() == {"all"} and any("count as other objects" in note for note in found["notes"])
    longer = small_run(tmp_path / "more") / "data"
    metadata = json.loads((longer / "metadata.json").read_text())
    for sample in list(metadata):  # one light less of each object: another data set of the same objects
        if sample.endswith("light_1"):
            del metadata[sample]
            for role in ("objects", "masks", "shadows"):
                (longer / role / f"{sample}.png").unlink()
    write_metadata(longer, metadata)
    found = judged("fallen", tmp_path / "two", data=str(longer), steps=(1,), num_seeds=1, baselines=False).document
    sizes = {name: track["num_samples"] for name, track in found["tracks"].items()}
    assert sizes == {"all": 1, "all, trained objects": 3}
    one = found["tracks"]["all"]["methods"]["model, 1 step"]["rmse"]
    assert one["std"] is None and one["low"] is None  # of one seed and one sample


def test_of_objects_it_does_not_know_a_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training data are not here: `false` would be a claim."""
    monkeypatch.chdir(small_run(tmp_path / "world"))
    make_folder(tmp_path / "other", 4)
    Path("data").rename("moved")
    out = tmp_path / "out"
    found = judged("fallen", out, data=str(tmp_path / "other"), steps=(1,), num_seeds=1, baselines=False).document
    assert found["tracks"].keys() == {"all"} and any("is not known" in note for note in found["notes"])
    assert {line["trained_on"] for line in read_per_image(out)} == {None}


def test_a_model_that_gives_nan_fails_and_names_the_sample(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "sample", lambda *_: torch.full((1, 1, 32, 32), torch.nan))
    with pytest.raises(StageFailedError, match="sample obj_0000_light_0 is not finite"):
        judged("fallen", tmp_path / "out", steps=(1,), num_seeds=1, baselines=False)


def test_options_of_no_effect_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    reporter = Reporter(active=False)
    reporter.warn = said.append  # type: ignore[method-assign]
    make_folder(tmp_path / "set", 2)
    asked = {"data": str(tmp_path / "set"), "image_size": 32, "weights": "raw", "steps": (1,), "baselines": False}
    judged("all-black", tmp_path / "out", reporter=reporter, **asked)
    assert [line for line in said if "--steps" in line] and [line for line in said if "--weights" in line]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give one MODEL, or --compare A B"),
        (("truth", "--steps", "1,x"), "--steps: whole numbers"),
        (("truth", "--steps", "0"), "--steps: whole numbers"),
        (("truth", "--seeds", "0"), "--seeds 0"),
        (("truth", "--weights", "best"), "--weights best"),
        (("truth", "--image-size", "60"), "--image-size 60"),
        (("nobody",), "nobody: no such model"),
        (("truth", "--data", "nowhere"), "nowhere: no such data set"),
        (("truth", "--view", "nowhere.json"), "nowhere.json: no such file"),
    ],
)
def test_a_wrong_word_is_one_line(words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", *words])
    assert done.exit_code == 2 and said in done.output and len(done.output.splitlines()) == 1, done.output
    assert not list(tmp_path.iterdir())


def test_the_papers_figures_stand_next_to_the_papers_data_and_steps_alone() -> None:
    def data(track_sizes: dict[str, int]) -> Any:
        tracks = [name for name, size in track_sizes.items() for _ in range(size)]

        class Listed(list[str]):
            def entry(self, i: int) -> Any:
                return SimpleNamespace(track=tracks[i])

        return Listed(tracks)

    evaluation = open_task(load_config()).evaluation
    sizes = {name: number for name, (_, number) in TRACKS.items()}
    assert sum(sizes.values()) == 555
    found = evaluation.published(data(sizes), 20)
    assert found["softness_control"] == {"soft_iou": 0.818, "rmse": 0.021, "si_rmse": 0.020, "zncc": 0.979}
    assert found.keys() == PUBLISHED[1].keys() and not evaluation.published(data(sizes), 4)
    moved = {**sizes, "softness_control": 149, "vertical_direction_control": 136}
    assert not evaluation.published(data(moved), 1) and not evaluation.published(data({"softness_control": 3}), 1)


def test_the_command_prints_tables_and_one_document(world: Path, tmp_path: Path) -> None:
    words = ["evaluate", "fallen", "--steps", "1", "--seeds", "2", "--no-baselines", "--control", "1"]
    words += ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == encode(json.loads((tmp_path / "out" / RESULT).read_text()))  # seven digits
    keys = ("task", "data", "fingerprint", "weights", "tracks", "control", "published", "notes")
    assert tuple(document) == keys
    done = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert "resuming: 8 of 8 samples are judged already" in done.output
    assert "model, 1 step" in done.output and "direction error" in done.output
    assert done.output.splitlines()[-1].endswith(str(tmp_path / "out" / PAGE))
