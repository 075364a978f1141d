"""`data check` knows geometry: each faulty copy of a sound set is named with its conversion, and no sound one is."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shadowlab.bench.mutants import DATA_MUTANTS, FaultySet
from shadowlab.examination import CheckReport
from shadowlab.tasks.shadow.baselines import inflated_silhouette
from shadowlab.tasks.shadow.conventions import Scenes, best_convention, documented, light_conventions
from shadowlab.tasks.shadow.dataset import EMBEDDED_PATH, index_dataset
from shadowlab.tasks.shadow.geometry import SIDE, small
from shadowlab.tasks.shadow.judgement import LEAST
from shadowlab.tasks.shadow.pictures import ROLES, decode_entry
from shadowlab.tasks.shadow.view import default_view
from tests.tasks.shadow.checked import check_dataset
from tests.tasks.shadow.sound import add_member, benchmark_metadata

Light = dict[str, float | str]


def embedded_subset(folder: Path, names: Sequence[str], side: int = 64) -> Path:
    """Samples of the embedded set at half their size."""
    metadata = json.loads((EMBEDDED_PATH / "metadata.json").read_text())
    for role in ROLES:
        (folder / f"{role}s").mkdir(parents=True)
        for name in names:
            picture = Image.open(EMBEDDED_PATH / f"{role}s" / f"{name}.png").resize((side, side), Image.Resampling.BOX)
            picture.save(folder / f"{role}s" / f"{name}.png")
    (folder / "metadata.json").write_text(json.dumps({name: metadata[name] for name in names}))
    return folder


@pytest.fixture(scope="module")
def embedded_names() -> list[str]:
    return sorted(json.loads((EMBEDDED_PATH / "metadata.json").read_text()))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, embedded_names: list[str]) -> Path:
    """16 objects under 4 lights each."""
    return embedded_subset(tmp_path_factory.mktemp("sound") / "set", embedded_names[:64])


def lines_of(report: CheckReport) -> list[str]:
    return [*map(str, report.problems), *report.errors, *report.warnings, *report.notices]


@pytest.mark.parametrize("mutant", DATA_MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fault_is_named_with_its_conversion(mutant: FaultySet, sound: Path, tmp_path: Path) -> None:
    mutant.make(sound, tmp_path / "set")
    report = check_dataset(tmp_path / "set")
    assert any(re.search(mutant.said, line) for line in lines_of(report)), lines_of(report)
    assert all("\n" not in line for line in lines_of(report))
    assert not report.passed or not mutant.is_error


# Sound sets


def test_the_embedded_set_has_no_fault() -> None:
    report = check_dataset("embedded")
    assert lines_of(report) == [] and report.picture == ""
    [said] = report.said
    assert said.startswith("geometry: 128 samples tried")


def test_the_benchmarks_layout_has_no_false_error(sound: Path, tmp_path: Path) -> None:
    """Three of four lights of each object, as the track of softness has them; the picture shows the ground, too."""
    import tarfile

    metadata = json.loads((sound / "metadata.json").read_text())
    names = [name for i, name in enumerate(sorted(metadata)) if i % 4 < 3]
    with tarfile.open(tmp_path / "benchmark.tar", "w") as archive:
        for i, name in enumerate(names):
            light = metadata[name]
            text = benchmark_metadata(**{key: light[key] for key in ("theta", "phi", "size")}, light_location=None)
            key = f"softness_control_{i:03d}"
            for role, member in (("object", "image"), ("mask", "mask"), ("shadow", "shadow")):
                add_member(archive, f"{key}.{member}.png", (sound / f"{role}s" / f"{name}.png").read_bytes())
            add_member(archive, f"{key}.metadata.json", json.dumps(text).encode())
    report = check_dataset(tmp_path / "benchmark.tar")
    assert report.passed, lines_of(report)


def drawn_set(folder: Path, source: Path, light: Callable[[int], tuple[float, float, float]], count: int = 32) -> Path:
    """Objects of `source` with the inflated silhouette's shadows, under lights of one's own."""
    metadata = json.loads((source / "metadata.json").read_text())
    names = sorted(metadata)
    for role in ROLES:
        (folder / f"{role}s").mkdir(parents=True)
    drawn: dict[str, Light] = {}
    for i in range(count):
        name = names[i * len(names) // count]
        theta, phi, size = light(i)
        for role in ("objects", "masks"):
            (folder / role / f"s{i:03d}.png").write_bytes((source / role / f"{name}.png").read_bytes())
        mask = np.asarray(Image.open(source / "masks" / f"{name}.png")) / 255.0
        shadow = inflated_silhouette(mask, theta, phi, size, default_view())
        Image.fromarray((shadow * 255).round().astype(np.uint8)).save(folder / "shadows" / f"s{i:03d}.png")
        drawn[f"s{i:03d}"] = {"theta": theta, "phi": phi, "size": size, "object": metadata[name]["object"]}
    (folder / "metadata.json").write_text(json.dumps(drawn))
    return folder


ODD: dict[str, Callable[[int], tuple[float, float, float]]] = {
    "one light": lambda i: (30.0, 120.0, 4.0),
    "one light from behind": lambda i: (35.0, 90.0, 2.0),
    "straight from above": lambda i: (0.0, 0.0, 4.0),
    "nearly from above": lambda i: (i % 5 / 2, 37.0 * i % 360, 4.0),
    "large lights": lambda i: (10.0 + i % 30, 67.0 * i % 360, 8.0),
    "low lights": lambda i: (45.0, 67.0 * i % 360, 2.0),
    "a narrow range of phi": lambda i: (25.0, 80.0 + i % 20, 3.0),
    "small values": lambda i: (i % 7 / 10, i % 6 * 1.0, 2.0 + i % 3),
    "a track of phi": lambda i: (30.0, 20.0 * (i % 18), 2.0),
    "a track of theta": lambda i: (5.0 * (i % 9), 45.0, 2.0),
    "a track of size": lambda i: (30.0, 0.0, (2.0, 4.0, 8.0)[i % 3]),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_sets_of_lights_are_no_error(kind: str, sound: Path, tmp_path: Path) -> None:
    report = check_dataset(drawn_set(tmp_path / "set", sound, ODD[kind]))
    assert report.errors == [] and report.problems == [], lines_of(report)


@pytest.mark.parametrize("phi", [0.0, 200.0])
def test_even_of_one_light_a_wrong_direction_is_found(phi: float, sound: Path, tmp_path: Path) -> None:
    folder = drawn_set(tmp_path / "set", sound, lambda i: (35.0, phi, 2.0), count=16)
    metadata = json.loads((folder / "metadata.json").read_text())
    for light in metadata.values():
        light["phi"] = (phi + 180) % 360
    (folder / "metadata.json").write_text(json.dumps(metadata))
    assert any("half a turn" in line or "mirrored" in line for line in check_dataset(folder).errors)


def test_one_object_is_judged(sound: Path, tmp_path: Path) -> None:
    """A single object is odd, and its lights may be right or wrong all the same."""
    folder = drawn_set(tmp_path / "set", sound, lambda i: (15.0 + i, 67.0 * i % 360, 2.0 + i % 6), count=20)
    metadata = json.loads((folder / "metadata.json").read_text())
    for name, light in metadata.items():
        light["object"] = "one"
        for role in ("objects", "masks"):
            (folder / role / f"{name}.png").write_bytes((folder / role / "s000.png").read_bytes())
        mask = np.asarray(Image.open(folder / "masks/s000.png")) / 255.0
        shadow = inflated_silhouette(mask, light["theta"], light["phi"], light["size"], default_view())
        Image.fromarray((shadow * 255).round().astype(np.uint8)).save(folder / f"shadows/{name}.png")
    (folder / "metadata.json").write_text(json.dumps(metadata))
    assert check_dataset(folder).errors == []
    for light in metadata.values():
        light["phi"] = (360 - light["phi"]) % 360
    (folder / "metadata.json").write_text(json.dumps(metadata))
    assert any("phi = (360 - phi) % 360" in line for line in check_dataset(folder).errors)


@pytest.mark.parametrize("count", [1, 2, LEAST - 1])
def test_of_a_few_samples_it_says_that_they_are_too_few(count: int, embedded_names: list[str], tmp_path: Path) -> None:
    report = check_dataset(embedded_subset(tmp_path / "set", embedded_names[:count]))
    assert report.errors == [] and report.problems == []
    assert report.said == [f"geometry: {count} samples are too few to judge (at least {LEAST})"]


@pytest.fixture(scope="module")
def scenes(embedded_names: list[str]) -> Scenes:
    index = index_dataset("embedded")
    pictures = [decode_entry(entry)[0] for entry in index.entries]
    return Scenes(
        embedded_names,
        np.array([entry.values for entry in index.entries]),
        np.stack([small(one.mask) for one in pictures if one is not None]),
        np.stack([small(one.shadow) for one in pictures if one is not None]),
    )


SUBSETS = st.lists(st.integers(0, 127), min_size=LEAST, max_size=40, unique=True)


@settings(max_examples=6)
@given(rows=SUBSETS)
def test_of_any_subset_no_convention_is_better_than_the_documented_one(scenes: Scenes, rows: list[int]) -> None:
    some = scenes.take(np.array(rows))
    best = best_convention(some, light_conventions(some.lights))
    assert not best.beats(documented(some)), best.convention.said


@settings(max_examples=6)
@given(
    rows=st.lists(st.integers(0, 127), min_size=24, max_size=48, unique=True),
    sign=st.sampled_from([1, -1]),
    turn=st.sampled_from([90, 180, 270]),
)
def test_of_any_subset_a_turn_is_undone(scenes: Scenes, rows: list[int], sign: int, turn: int) -> None:
    """Whatever the files' phi is made of the true one, the conversion gives the true one back."""
    some = scenes.take(np.array(rows))
    faulty = some.lights.copy()
    faulty[:, 1] = (sign * faulty[:, 1] + turn) % 360
    wrong = Scenes(some.ids, faulty, some.masks, some.shadows)
    best = best_convention(wrong, light_conventions(faulty))
    assert best.beats(documented(wrong))
    difference = np.radians(best.convention.lights(faulty)[:, 1] - some.lights[:, 1])
    assert np.cos(difference).min() > 1 - 1e-6


def test_a_picture_that_is_not_square_lies_in_its_letterbox() -> None:
    import torch

    picture = torch.zeros(1, 32, 128)
    picture[:, :, 64:] = 1.0
    reduced = small(picture)
    assert reduced.shape == (SIDE, SIDE) and math.isclose(reduced.sum(), SIDE / 2 * SIDE / 4)
    assert reduced[: SIDE * 3 // 8].max() == 0 and reduced[SIDE // 2, -1] == 1
