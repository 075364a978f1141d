"""Meshes from files: every type, colours, axes, names, refusals."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.tasks.shadow.render.dataset import render_dataset
from shadowlab.tasks.shadow.render.meshes import check_meshes, find_meshes, load_mesh
from shadowlab.tasks.shadow.render.placement import MAX_HEIGHT
from shadowlab.tasks.shadow.render.scene import SceneObject, mitsuba
from shadowlab.tasks.shadow.render.shapes import PLAIN_GREY, Part

pytest.importorskip("mitsuba", reason="rendering is optional: pip install mitsuba trimesh")
trimesh = pytest.importorskip("trimesh", reason="meshes are optional: pip install mitsuba trimesh")

SHARED = Path(__file__).parents[5] / "shared" / "data" / "meshes"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real meshes is not next to the checkout")
RED = (255, 0, 0, 255)


def tower() -> "trimesh.Trimesh":
    """Three times as high (y) as it is wide (x) or deep (z)."""
    return trimesh.creation.box(extents=(1, 3, 1))


def picture_of(path: Path, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    with mitsuba() as mi:
        return SceneObject(mi, load_mesh(path)).render_object(size, 16)


def extent(parts: list[Part]) -> np.ndarray:
    return np.ptp(np.vstack([part.vertices for part in parts]), axis=0)


def write_textured(folder: Path, suffix: str) -> Path:
    """A square in the x-y plane, facing +z: red at the bottom, above it blue on the left and green on the right."""
    texture = np.zeros((8, 8, 3), dtype=np.uint8)
    texture[:4, :4, 2] = texture[:4, 4:, 1] = texture[4:, :, 0] = 255
    image = Image.fromarray(texture)
    mesh = trimesh.Trimesh([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], [(0, 1, 2), (0, 2, 3)], process=False)
    if suffix == "glb":
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    else:
        material = trimesh.visual.material.SimpleMaterial(image=image, diffuse=RED)
    mesh.visual = trimesh.visual.TextureVisuals(uv=[(0, 0), (1, 0), (1, 1), (0, 1)], material=material)
    path = folder / f"square.{suffix}"
    mesh.export(path)
    return path


@pytest.mark.parametrize(("suffix", "up"), [("obj", 1), ("glb", 1), ("ply", 2)])
def test_each_type_is_read_with_its_up_axis(tmp_path: Path, suffix: str, up: int) -> None:
    extents = [1, 1, 1]
    extents[up] = 3
    path = tmp_path / f"tower.{suffix}"
    trimesh.creation.box(extents=extents).export(path)
    parts = load_mesh(path)
    np.testing.assert_allclose(extent(parts), np.array((1, 1, 3)) * MAX_HEIGHT / 3, rtol=1e-5)
    assert min(part.vertices[:, 2].min() for part in parts) == pytest.approx(0, abs=1e-6)


def test_a_gltf_front_looks_at_the_camera(tmp_path: Path) -> None:
    """+z of the file, the front, goes to -y, where the camera is; +x stays on the right."""
    mesh = trimesh.Trimesh([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 2)], [(0, 1, 2), (0, 3, 1)], process=False)
    mesh.export(tmp_path / "corner.glb")
    (part,) = load_mesh(tmp_path / "corner.glb")
    origin, right, up, front = part.vertices
    assert right[0] > origin[0]
    assert up[2] > origin[2]
    assert front[1] < origin[1]


@pytest.mark.parametrize("suffix", ["obj", "glb"])
def test_textures_are_honoured_and_the_right_way_round(tmp_path: Path, suffix: str) -> None:
    path = write_textured(tmp_path, suffix)
    check_meshes([path])  # without a warning
    picture, mask = picture_of(path)
    rows, columns = np.nonzero(mask == 255)
    brightest = picture[rows, columns].argmax(axis=1)
    middle = (rows.min() + rows.max()) / 2
    left, right, above, below = columns < 14, columns > 17, rows < middle - 1, rows > middle + 1
    for place, channel in ((below, 0), (above & right, 1), (above & left, 2)):
        assert place.sum() > 5
        assert (brightest[place] == channel).all()


def test_base_colour_vertex_colours_and_face_colours(tmp_path: Path) -> None:
    by_material, by_vertex, by_face, plain = tower(), tower(), tower(), tower()
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=RED)
    by_material.visual = trimesh.visual.TextureVisuals(material=material)
    by_vertex.visual.vertex_colors = RED
    by_face.visual.face_colors = RED
    by_material.export(tmp_path / "material.glb")
    by_vertex.export(tmp_path / "vertex.ply")
    by_face.export(tmp_path / "face.ply")
    plain.export(tmp_path / "plain.ply")
    for name in ("material.glb", "vertex.ply", "face.ply"):
        picture, mask = picture_of(tmp_path / name)
        solid = picture[mask == 255].astype(int)
        assert (solid[:, 0] > 60).all(), name
        assert (solid[:, 1:] < 5).all(), name
    (part,) = load_mesh(tmp_path / "plain.ply")
    assert part.color == PLAIN_GREY


@pytest.mark.parametrize("kind", ["texture", "material file", "picture"])
def test_a_texture_that_cannot_be_used_is_warned_of(tmp_path: Path, kind: str) -> None:
    path = write_textured(tmp_path, "obj")
    library = next(tmp_path.glob("*.mtl"))
    (texture,) = (file for file in tmp_path.iterdir() if file.suffix in (".png", ".jpeg", ".jpg"))
    if kind == "texture":
        texture.unlink()
    elif kind == "picture":
        texture.write_bytes(b"not a picture")
    else:
        library.unlink()
    expected = {"texture": f"{texture.name} is missing", "material file": f"{library.name} is missing"}
    with pytest.warns(UserWarning, match=expected.get(kind, f"{texture.name} is not a picture")):
        check_meshes([path])


def test_an_external_texture_of_a_glb_that_is_missing_is_warned_of(tmp_path: Path) -> None:
    path = write_textured(tmp_path, "glb")
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    header = json.loads(data[20 : 20 + length])
    header["images"] = [{"uri": "Textures/gone.png"}]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<II", len(text), 0x4E4F534A) + text + data[20 + length :]
    path.write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(body)) + body)
    with pytest.warns(UserWarning, match=r"gone\.png is missing; rendered without it"):
        check_meshes([path])


def test_parts_and_transforms_of_a_scene(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.creation.box(extents=(1, 1, 1)), node_name="low")
    lifted = trimesh.transformations.translation_matrix((0, 1, 0))
    scene.add_geometry(trimesh.creation.box(extents=(1, 1, 1)), node_name="high", transform=lifted)
    scene.export(tmp_path / "two.glb")
    parts = load_mesh(tmp_path / "two.glb")
    assert len(parts) == 2
    np.testing.assert_allclose(extent(parts), np.array((0.5, 0.5, 1)) * MAX_HEIGHT, rtol=1e-5)


def test_names_are_unique_and_in_order(tmp_path: Path) -> None:
    for name in ("a/cow.obj", "b/cow.ply", "B-cow.PLY", "b-cow.obj", "my chair!.glb", ".hidden/x.obj", "a/readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_meshes(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for _, path in found] == [
        "B-cow.PLY",
        "a/cow.obj",
        "b-cow.obj",
        "b/cow.ply",
        "my chair!.glb",
    ]
    names = [name for name, _ in found]
    assert names == ["B-cow", "a-cow", "b-cow-2", "b-cow-3", "my_chair_"]
    assert find_meshes(tmp_path, 2) == found[:2]


def test_folders_without_a_mesh(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no mesh at any depth; add \.obj, \.ply or \.glb files"):
        find_meshes(tmp_path)
    with pytest.raises(UserError, match="no such folder of meshes"):
        find_meshes(tmp_path / "nowhere")


def triangle(third: str) -> str:
    return f"v 0 0 0\nv 1 0 0\nv {third}\nf 1 2 3\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nan.obj", triangle("nan 1 0"), "a vertex is not finite"),
        ("inf.obj", triangle("0 inf 0"), "a vertex is not finite"),
        ("empty.obj", "", "has no triangles|cannot be read"),
        ("points.obj", "v 0 0 0\nv 1 1 1\n", "has no triangles|cannot be read"),
        ("flat.obj", triangle("2 0 0"), "all of its faces are without area"),
        ("index.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 7\n", "a face names a vertex|cannot be read"),
        ("noise.glb", "this is no mesh", "cannot be read as a mesh"),
        ("noise.ply", "this is no mesh", "cannot be read as a mesh"),
    ],
)
def test_bad_meshes_are_named_with_the_fix(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_mesh(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "or take it out" in str(caught.value)


def test_all_bad_meshes_are_listed_before_anything_is_rendered(tmp_path: Path) -> None:
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    for k in range(12):
        (meshes / f"bad{k:02d}.obj").write_text(triangle("nan 0 0"))
    tower().export(meshes / "good.obj")
    with pytest.raises(UserError, match=r"bad00\.obj.*bad09\.obj.*; and 2 more$"):
        render(tmp_path / "out", meshes)
    assert not (tmp_path / "out").exists()


def render(out: Path, meshes: Path, num_objects: int | None = None) -> int:
    return render_dataset(
        out,
        SingleProcess(torch.device("cpu")),
        Reporter(active=False),
        num_objects=num_objects,
        lights_per_object=1,
        image_size=32,
        samples_per_pixel=4,
        seed=0,
        meshes=meshes,
    )


def test_without_trimesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower().export(tmp_path / "tower.obj")
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(MissingDependencyError, match="pip install mitsuba trimesh"):
        render(tmp_path / "out", tmp_path)


def test_meshes_become_a_data_set(tmp_path: Path) -> None:
    meshes = tmp_path / "meshes"
    for folder in ("a", "b"):
        (meshes / folder).mkdir(parents=True)
        tower().export(meshes / folder / "tower.obj")
    write_textured(meshes / "a", "glb")
    assert render(tmp_path / "all", meshes) == 3
    metadata = json.loads((tmp_path / "all" / "metadata.json").read_text())
    assert {entry["object"] for entry in metadata.values()} == {"a-tower", "b-tower", "square"}
    assert render(tmp_path / "one", meshes, num_objects=1) == 1


@needs_shared
def test_real_meshes(tmp_path: Path) -> None:
    """A textured OBJ and GLBs with an external texture: each is in colour, and throws a shadow."""
    count = render(tmp_path / "real", SHARED)
    metadata = json.loads((tmp_path / "real" / "metadata.json").read_text())
    assert count == len(metadata) >= 4
    assert {"cow", "brick", "coin", "character"} <= {entry["object"] for entry in metadata.values()}
    for name in metadata:
        with Image.open(tmp_path / "real" / "objects" / f"{name}.png") as image:
            picture = np.asarray(image).astype(int)
        assert np.ptp(picture, axis=2).max() > 30, f"{name} is grey"
        with Image.open(tmp_path / "real" / "shadows" / f"{name}.png") as image:
            assert np.asarray(image).max() > 100
