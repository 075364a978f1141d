"""Rendered pairs: the albedo is exact and knows nothing of light, and what is held out shares nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import UserError
from shadowlab.tasks.albedo.render import render_pairs
from shadowlab.tasks.albedo.render.lighting import Lighting, choose_lighting, unit_irradiance
from shadowlab.tasks.albedo.render.patterns import PATTERNS, SIDE, dressed
from shadowlab.tasks.albedo.render.scene import NOTHING, AlbedoScene, Rendered, srgb_from_linear
from shadowlab.tasks.shadow.render import Part, linear_from_srgb, mitsuba
from shadowlab.tasks.shadow.render.shapes import box

pytest.importorskip("mitsuba", reason="rendering is optional: pip install mitsuba trimesh")

SMALL: dict[str, Any] = {"num_objects": 2, "lights_per_object": 2, "image_size": 24, "samples_per_pixel": 4, "seed": 3}
WHITE = Lighting(theta=20, phi=70, size=3, key=(0.5, 0.5, 0.5), sky=(0.2, 0.2, 0.2))
RED = Lighting(theta=50, phi=200, size=1, key=(0.9, 0.1, 0.1), sky=(0.05, 0.05, 0.2))


def render(out: Path, **changes: Any) -> int:
    return render_pairs(out, SingleProcess(torch.device("cpu")), Reporter(active=False), **{**SMALL, **changes})


def levels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def scene_under(light: Lighting, colour: tuple[float, float, float], ground: int = 200, radius: float = 5) -> Rendered:
    with mitsuba(1) as mi:
        picture = np.full((4, 4, 3), ground, np.uint8)
        return AlbedoScene(mi, [box((1, 1, 1)).painted(colour)], picture, radius).render(light, 32, 4, 1)


def test_the_albedo_is_the_reflectance_to_the_last_level_whatever_the_light() -> None:
    colour = (0.1, 0.35, 0.7)
    white, red = scene_under(WHITE, colour), scene_under(RED, colour)
    same = (np.abs(white.albedo.astype(int) - red.albedo).max(axis=-1) <= 1).mean()
    assert same > 0.85 and not np.array_equal(white.beauty, red.beauty)
    box_level = np.round(srgb_from_linear(np.array(colour)) * 255).astype(int)
    found = white.albedo[white.valid > 0].astype(int)
    on_box = np.abs(found - box_level).max(axis=1) <= 1
    on_ground = np.abs(found - 200).max(axis=1) <= 1
    assert on_box.sum() > 20 and on_ground.sum() > 200
    assert on_box.sum() + on_ground.sum() > 0.85 * len(found)  # the rest are edges, where both share a pixel


def test_a_white_ground_without_a_shadow_is_as_bright_as_the_light_says() -> None:
    far = scene_under(WHITE, (0.5, 0.5, 0.5), ground=255)
    brightest = linear_from_srgb(np.quantile(far.beauty[..., 1], 0.9) / 255)
    assert brightest == pytest.approx(0.7, abs=0.06)


def test_irradiance_of_a_small_light_overhead_is_that_of_a_point() -> None:
    assert unit_irradiance(0, 0, 0.01) == pytest.approx(0.01**2 / 8**2, rel=1e-3)
    assert unit_irradiance(60, 10, 0.01) == pytest.approx(0.5 * 0.01**2 / 8**2, rel=1e-3)


def test_where_there_is_no_surface_nothing_is_valid() -> None:
    seen = scene_under(WHITE, (0.5, 0.5, 0.5), radius=1.2)
    empty = seen.valid == 0
    assert 0.2 < empty.mean() < 0.9
    outside = seen.albedo[empty].astype(int)
    assert (outside == NOTHING).all(axis=1).mean() > 0.7 and np.array_equal(seen.beauty[0, 0], seen.albedo[0, 0])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("render") / "pairs"
    assert render(out) == 4
    return out


def test_samples_of_an_object_share_its_surfaces_and_differ_in_light(rendered: Path) -> None:
    for number in range(2):
        one, other = (f"obj_000{number}_light_{light}.png" for light in range(2))
        difference = np.abs(levels(rendered / "albedo" / one) - levels(rendered / "albedo" / other)).max(axis=-1)
        assert (difference > 1).mean() < 0.25 and np.median(difference) == 0  # edges alone, at 4 samples a pixel
        assert np.abs(levels(rendered / "beauty" / one) - levels(rendered / "beauty" / other)).mean() > 2
    one, other = (levels(rendered / "albedo" / f"obj_000{number}_light_0.png") for number in range(2))
    assert np.abs(one - other).mean() > 10


def test_the_folder_says_what_it_holds(rendered: Path) -> None:
    metadata = json.loads((rendered / "metadata.json").read_text())
    assert metadata["colour_space"] == {"beauty": "srgb", "albedo": "srgb"}
    assert {name: one["object"] for name, one in metadata["samples"].items()} == {
        f"obj_000{i}_light_{j}": f"obj_000{i}" for i in range(2) for j in range(2)
    }
    lines = (rendered / "filename_list.txt").read_text().splitlines()
    assert lines[0] == "beauty/obj_0000_light_0.png albedo/obj_0000_light_0.png" and len(lines) == 4


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(rendered: Path, tmp_path: Path) -> None:
    render(tmp_path / "again")
    render(tmp_path / "other", seed=4, num_objects=1, lights_per_object=1)
    files = sorted(file.relative_to(rendered) for file in rendered.rglob("*") if file.is_file())
    assert all((rendered / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    name = Path("beauty") / "obj_0000_light_0.png"
    assert (rendered / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_an_object_with_a_photograph_is_split_with_all_that_show_it(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(photographs / f"view{number}.png")
    render(tmp_path / "out", num_objects=4, lights_per_object=1, textures=photographs)
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())["samples"]
    assert [metadata[f"obj_000{i}_light_0"]["object"] for i in range(4)] == [
        f"photograph view{i % 2}.png" for i in range(4)
    ]
    colours = levels(tmp_path / "out" / "albedo" / "obj_0000_light_0.png").reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 60


def test_one_photograph_cannot_be_held_out(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "one.png")
    with pytest.raises(UserError, match="1 photographs .* give at least two"):
        render(tmp_path / "out", textures=tmp_path)
    with pytest.raises(UserError, match="no such folder of photographs"):
        render(tmp_path / "out", textures=tmp_path / "none")


def test_lights_differ_and_stay_in_range() -> None:
    found = [choose_lighting(0, i, j) for i in range(20) for j in range(3)]
    assert len({(one.theta, one.phi, one.size) for one in found}) == 60
    luminance = np.array([0.2126, 0.7152, 0.0722])
    bright = [float((np.array(one.key) + np.array(one.sky)) @ luminance) for one in found]
    assert 0.35 <= min(bright) and max(bright) <= 1.0


def test_surfaces_repeat_without_a_seam_and_a_mesh_keeps_the_colours_it_has() -> None:
    for kind in PATTERNS:
        values = kind(np.random.default_rng(1))
        assert values.shape == (SIDE, SIDE) and values.min() >= 0 and len(np.unique(values)) > 1
    painted = box((1, 1, 1)).painted((0.9, 0.1, 0.1))
    bare = box((1, 1, 1))
    kept = dressed([painted, bare], np.random.default_rng(0), None, keeps=True)
    assert kept[0] is painted and kept[1] is not bare
    assert isinstance(kept[1], Part) and (kept[1].texture is not None or kept[1].color != bare.color)
