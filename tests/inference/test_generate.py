"""`shadowlab generate`, as it is typed."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from shadowlab.inference import load_generator
from tests import warm
from tests.inference.made import disk, make_run, picture, save

ROOT = Path(__file__).parents[2]
H, W = 40, 56
LIGHT = ("--theta", "30", "--phi", "90", "--size", "4")
OBJECT = ("--object", "o.png", "--mask", "m.png")
ROWS = [(10.0 + 5 * k, 60.0 * k, 2.0 + k) for k in range(5)]


@pytest.fixture(scope="module")
def place(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained run, an object, and a background of its size; the current one."""
    root, before = tmp_path_factory.mktemp("generate"), Path.cwd()
    os.chdir(root)
    make_run(stage_folder, Path("runs"))
    save(picture(H, W), Path("o.png"))
    save(disk(H, W, soft=3.0), Path("m.png"))
    save(picture(H, W, seed=9), Path("b.png"))
    lines = [
        "object,mask,theta,phi,size,out",
        *(f"o.png,m.png,{t},{p},{s},{k}.png" for k, (t, p, s) in enumerate(ROWS)),
    ]
    Path("list.csv").write_text("\n".join(lines) + "\n")
    yield root
    os.chdir(before)


def generate(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["generate", "first", "--device", "cpu", *words])
    assert done.exit_code == code, done.output
    return done.stdout if "--json" in words else done.output


def levels(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_the_map_is_what_python_gives_at_the_pictures_size(place: Path) -> None:
    said = generate(*OBJECT, *LIGHT, "--seed", "5", "--steps", "2", "--out", "new/map.png")
    assert "runs/first, step 2, EMA weights, on cpu" in said
    assert "new/map.png: shadow map, 56 x 40 pixels, 2 steps, seed 5" in said
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    exact = load_generator("first", device="cpu").generate("o.png", "m.png", 30, 90, 4, steps=2, seed=5)
    torch.set_num_threads(threads)
    assert exact.shape == (H, W)
    assert np.array_equal(levels("new/map.png"), np.round(exact * np.float32(255)).astype(np.uint8))
    generate(*OBJECT, *LIGHT, "--seed", "5", "--steps", "2", "--bits", "16", "--out", "deep.png")
    assert np.array_equal(levels("deep.png"), np.round(exact.astype(float) * 65535).astype(np.uint16))
    means = [load_generator("first", device="cpu").generate("o.png", "m.png", 30, 90, 4, seed=s) for s in (3, 4)]
    generate(*OBJECT, *LIGHT, "--seed", "3", "--samples", "2", "--out", "mean.png")
    assert np.abs(levels("mean.png") - np.mean(means, axis=0) * 255).max() <= 0.51


def test_a_list_is_its_rows_one_by_one_and_goes_on_where_it_stopped(place: Path) -> None:
    said = generate("--list", "list.csv", "--out", "all")
    assert "5 of 5 pictures written to all/" in said
    for number, (theta, phi, size) in enumerate(ROWS):
        light = ("--theta", str(theta), "--phi", str(phi), "--size", str(size))
        generate(*OBJECT, *light, "--out", f"one/{number}.png")
        assert Path(f"one/{number}.png").read_bytes() == Path(f"all/{number}.png").read_bytes()
    Path("all/2.png").unlink()
    Path("all/3.png").write_bytes(Path("all/4.png").read_bytes())
    written = os.stat("all/1.png").st_mtime_ns
    said = generate("--list", "list.csv", "--out", "all", code=2)
    assert "line 5, column out: all/3.png: is there already and shows something else" in said
    assert "1 problem in the list; nothing was written" in said and not Path("all/2.png").exists()
    done = json.loads(generate("--list", "list.csv", "--out", "all", "--overwrite", "--json"))
    assert (done["written"], done["kept"]) == (2, 3) and os.stat("all/1.png").st_mtime_ns == written
    assert all(Path(f"one/{k}.png").read_bytes() == Path(f"all/{k}.png").read_bytes() for k in range(5))


def test_two_processes_write_the_same_files(place: Path) -> None:
    """In processes of their own, where a device has a number."""
    words = ["generate", "first", "--device", "cpu", "--list", "list.csv"]
    program = [sys.executable, "-m", "cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for out, processes in (("alone", "1"), ("two", "2")):
        done = warm.run([*program, "--out", out, "--processes", processes], env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "5 of 5 pictures written" in done.stdout
    for number in range(len(ROWS)):
        assert Path(f"alone/{number}.png").read_bytes() == Path(f"two/{number}.png").read_bytes()


def test_everything_wrong_with_a_list_is_said_before_anything_is_written(place: Path) -> None:
    save(np.zeros((H, W), np.uint8), place / "deep" / "empty.png")
    rows = [
        "object,mask,theta,phi,size,seed,background,out",
        "../o.png,../m.png,30,90,4,0,,good.png",
        "../o.png,../m.png,95,90,4,0,,a.png",
        "../o.png,../m.png,30,west,4,0,,b.png",
        "../o.png,../m.png,30,90,4,1.5,,c.png",
        "../o.png,../m.png,,90,4,0,,d.png",
        "../o.png,empty.png,30,90,4,0,,e.png",
        "gone.png,../m.png,30,90,4,0,,f.png",
        "../o.png,../m.png,30,90,4,0,,../g.png",
        "../o.png,../m.png,30,90,4,0,,GOOD.png",
        "../o.png,../m.png,30,90,4,0,mauve-ish,h.png",
        "../o.png,../m.png,30,90,4,0",
        "",
        "../o.png,../m.png,30,90,4,-1,,i.txt",
    ]
    Path("deep/bad.csv").write_text("\n".join(rows))
    said = generate("--list", "deep/bad.csv", "--out", "nothing", code=2)
    for line, words in {
        3: "column theta: light theta = 95.0 is outside [0, 45]",
        4: "column phi: 'west' is no number",
        5: "column seed: '1.5' is no whole number",
        6: "column theta: theta is missing: give 0 to 45",
        7: "column mask: deep/empty.png: empty mask",
        8: "column object: deep/gone.png: ",
        9: "column out: out = '../g.png' leads out",
        10: "column out: GOOD.png is written by line 2, too",
        11: "column background: background 'mauve-ish': no such file",
        12: "6 cells, the first line has 8",
        14: "column seed: seed = -1 is no whole number",
    }.items():
        assert any(f"line {line}" in one and words in one for one in said.splitlines()), (line, words, said)
    assert "11 problems in the list; nothing was written" in said and not Path("nothing").exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("object;mask;out", "separated by semicolons"),
        ("object,out,tehta", "no column is called 'tehta'; did you mean theta?"),
        ("object,mask", "column out is missing"),
        ("object,out,out", "column out is there twice"),
        ("object,out", "no row below"),
        ('object,out\n"a', "not CSV"),
        ("\x00\x01", "no column is called"),
    ],
)
def test_a_list_without_good_columns_is_one_line(place: Path, header: str, message: str) -> None:
    Path("head.csv").write_text(header + "\n")
    said = generate("--list", "head.csv", "--out", "nothing", code=2).strip()
    assert message in said and len(said.splitlines()) == 1


def test_composites_strips_and_animations(place: Path) -> None:
    generate(*OBJECT, *LIGHT, "--background", "b.png", "--intensity", "0", "--out", "none.png")
    matte = disk(H, W, soft=3.0)
    made, own, ground = levels("none.png"), picture(H, W), picture(H, W, seed=9)
    assert np.array_equal(made[matte == 0], ground[matte == 0]) and np.array_equal(
        made[matte == 255], own[matte == 255]
    )
    generate(*OBJECT, "--light", "evening", "--background", "transparent", "--out", "cut.png")
    assert levels("cut.png").shape == (H, W, 4)
    generate(*OBJECT, "--light", "noon", "--samples", "3", "--side-by-side", "--out", "three.png")
    single = generate(*OBJECT, "--light", "noon", "--seed", "2", "--out", "third.png")
    assert "shadow map, 56 x 40" in single
    assert np.array_equal(levels("three.png")[-H:, 2 * W :], levels("third.png"))
    generate(*OBJECT, "--light", "noon", "--sweep", "phi", "--background", "white", "--out", "turn.png")
    assert levels("turn.png").shape[1] == 8 * W
    said = generate(*OBJECT, "--theta", "30", "--size", "2", "--sweep", "phi", "--frames", "5", "--out", "turn.gif")
    with Image.open("turn.gif") as turn:
        assert (turn.size, turn.n_frames) == ((W, H), 5)
    assert "shadow maps under 5 values of phi" in said
    assert "is there already" in generate(
        *OBJECT, "--theta", "30", "--size", "2", "--sweep", "phi", "--frames", "5", "--out", "turn.gif"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*OBJECT, *LIGHT, "--out", "x.jpg"), "results are PNG files"),
        ((*OBJECT, *LIGHT, "--out", "x.gif"), "a GIF shows a --sweep"),
        ((*OBJECT, *LIGHT, "--out", "runs.png"), "runs.png: a folder"),
        ((*OBJECT, *LIGHT, "--out", "o.png"), "o.png: is there already and shows something else"),
        ((*OBJECT, "--theta", "30", "--out", "x.png"), "--phi is missing: give 0 to 360"),
        ((*OBJECT, "--light", "noon", "--size", "9", "--out", "x.png"), "light size = 9.0 is outside [2, 8]"),
        ((*OBJECT, "--light", "noon", "--theta", "nan", "--out", "x.png"), "light theta = nan is outside"),
        (("--object", "o.png", "--light", "noon", "--out", "x.png"), "no mask was given and the picture has no"),
        (("--light", "noon", "--out", "x.png"), "--object is missing"),
        ((*OBJECT, *LIGHT, "--intensity", "1", "--out", "x.png"), "belong to a composite: add --background"),
        ((*OBJECT, *LIGHT, "--bits", "12", "--out", "x.png"), "--bits 12: 8 or 16"),
        ((*OBJECT, *LIGHT, "--bits", "16", "--background", "b.png", "--out", "x.png"), "a composite has 8 bits"),
        ((*OBJECT, *LIGHT, "--sweep", "phi", "--out", "x.png"), "--phi: --sweep phi gives its values"),
        ((*OBJECT, *LIGHT, "--steps", "0", "--out", "x.png"), "steps = 0 is no whole number"),
        ((*OBJECT, *LIGHT, "--samples", "0", "--out", "x.png"), "--samples 0: give 1 to 1000"),
        ((*OBJECT, *LIGHT, "--list", "list.csv", "--out", "x"), "--object: with --list each row names its own"),
        (("--list", "gone.csv", "--out", "x"), "gone.csv: cannot be read (No such file"),
        (("--object", "m.png", "--mask", "o.png", *LIGHT, "--out", "x.png"), "o.png: the mask is coloured"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(place: Path, words: tuple[str, ...], message: str) -> None:
    (place / "runs.png").mkdir(exist_ok=True)
    said = generate(*words, code=2)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], said
    assert not Path("x.png").exists() and not Path("x").exists()


def test_a_model_of_other_weights_gives_another_file(place: Path) -> None:
    generate(*OBJECT, *LIGHT, "--out", "weights.png")
    said = generate(*OBJECT, *LIGHT, "--weights", "raw", "--out", "weights.png", code=2)
    assert "raw weights" in said and "shows something else" in said
    shutil.copy("weights.png", "before.png")
    generate(*OBJECT, *LIGHT, "--weights", "raw", "--overwrite", "--out", "weights.png")
    assert not np.array_equal(levels("weights.png"), levels("before.png"))
