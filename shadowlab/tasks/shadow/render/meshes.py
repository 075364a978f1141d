"""Objects from OBJ, PLY and GLB files.

Axes: GLB (by its specification) and OBJ (by custom) are y-up and are turned to z-up, so that a glTF model's front
looks at the camera. PLY has no convention and is taken as z-up.

Surface colour, the first that the file has: base colour texture, vertex or face colours, base colour, and
`shapes.PLAIN_GREY` where it says nothing. Numbers count as linear reflectance, textures and PLY or OBJ vertex colours
as sRGB. Transparency, normal maps, roughness and emission are left out: they hardly change a shadow.
"""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.tasks.shadow.render.placement import rest_on_ground
from shadowlab.tasks.shadow.render.shapes import PLAIN_GREY, Part, linear_from_srgb
from shadowlab.tasks.shadow.render.textures import unusable_textures

EXTENSIONS = (".glb", ".obj", ".ply")
_Y_UP = (".glb", ".obj")
_Z_FROM_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
_MAX_TEXTURE_SIDE = 2048  # larger textures are reduced: their float copy would take gigabytes
_MAX_LISTED = 10


def find_meshes(folder: Path, limit: int | None = None) -> list[tuple[str, Path]]:
    """(object id, file) of the first `limit` meshes at any depth below `folder`, in the order of their paths.

    The id is the file's name without its extension if no other mesh has that, else the path below `folder` with "-"
    between its parts, and a number at the end where even that is taken. Names that start with a dot are left out.

    Raises:
        UserError: `folder` is not a folder, or has no mesh.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of meshes; correct the path")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS]
    visible = [path for path in paths if (folder / path).is_file() and not any(p.startswith(".") for p in path.parts)]
    if not visible:
        raise UserError(f"{folder}: no mesh at any depth; add .obj, .ply or .glb files")
    chosen = sorted(visible, key=lambda path: path.as_posix())
    stems = Counter(_plain(path.stem).lower() for path in chosen)
    taken: set[str] = set()
    found = []
    for path in chosen:
        stem = _plain(path.stem)
        name = _unused(stem if stems[stem.lower()] == 1 else _plain("-".join(path.with_suffix("").parts)), taken)
        taken.add(name.lower())  # some file systems do not tell upper from lower case
        found.append((name, folder / path))
    return found[:limit]


def _plain(name: str) -> str:
    """Letters, digits, dots, dashes and underscores only; a file name on every system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "mesh"


def _unused(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate.lower() in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def check_meshes(paths: Sequence[Path]) -> None:
    """Load every file once, so that a bad one is known before the rendering starts.

    Warns of each texture that cannot be used; the surface is rendered in its base colour or plain grey.

    Raises:
        MissingDependencyError: trimesh is not installed.
        UserError: the files that cannot be used, ten of them by name, each with the fix.
    """
    problems = []
    for path in paths:
        try:
            load_mesh(path)
        except MissingDependencyError:
            raise
        except UserError as error:
            problems.append(str(error))
            continue
        for reason in unusable_textures(path):
            warnings.warn(f"{path}: {reason}; rendered without it", stacklevel=2)
    if problems:
        rest = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise UserError("; ".join(problems[:_MAX_LISTED]) + rest)


def load_mesh(path: Path) -> list[Part]:
    """The surfaces of one file, z-up, scaled and resting on the ground (`placement.rest_on_ground`).

    Raises:
        MissingDependencyError: trimesh is not installed.
        UserError: the file cannot be read, has no triangle, or has a vertex that is not finite.
    """
    trimesh = _trimesh()
    try:
        scene = trimesh.load_scene(path, process=False)  # `process` would drop non-finite vertices silently
    except Exception as error:  # trimesh's parsers raise whatever they trip over
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: cannot be read as a mesh ({reason}); export it again, or take it out") from error
    parts = []
    for node in sorted(scene.graph.nodes_geometry):
        transform, name = scene.graph[node]
        mesh = scene.geometry[name]
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            parts.append(_part(mesh, np.asarray(transform), path))
    if not parts:
        raise UserError(f"{path}: has no triangles; export it as a surface mesh, or take it out")
    if not all(np.isfinite(part.vertices[part.faces]).all() for part in parts):
        raise UserError(f"{path}: a vertex is not finite (NaN or infinity); repair the mesh, or take it out")
    try:
        return rest_on_ground(parts)
    except ValueError as error:
        raise UserError(f"{path}: cannot be placed, {error}; repair the mesh, or take it out") from error


def _trimesh() -> ModuleType:
    try:
        import trimesh
    except ImportError as error:
        raise MissingDependencyError("reading meshes needs trimesh: pip install mitsuba trimesh") from error
    return trimesh


def _part(mesh: Any, transform: NDArray[np.float64], path: Path) -> Part:
    with np.errstate(invalid="ignore"):  # vertices that are not finite are reported by name
        vertices = np.asarray(mesh.vertices, dtype=np.float64) @ transform[:3, :3].T + transform[:3, 3]
    if path.suffix.lower() in _Y_UP:
        vertices = vertices @ _Z_FROM_Y_UP.T
    faces = np.asarray(mesh.faces, dtype=np.int64)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(f"{path}: a face names a vertex that is not there; repair the mesh, or take it out")
    if mesh.visual.kind == "texture":
        return _with_material(Part(vertices, faces), mesh.visual, path)
    if mesh.visual.kind == "vertex":
        return Part(vertices, faces, (1, 1, 1), vertex_colors=_linear(mesh.visual.vertex_colors, path))
    if mesh.visual.kind == "face":
        colors = np.repeat(_linear(mesh.visual.face_colors, path), 3, axis=0)
        unshared = np.arange(3 * len(faces)).reshape(-1, 3)
        return Part(vertices[faces.ravel()], unshared, (1, 1, 1), vertex_colors=colors)
    return Part(vertices, faces, PLAIN_GREY)


def _linear(colors: Any, path: Path) -> NDArray[np.float64]:
    """Vertex or face colours, uint8 or in [0, 1], as linear RGB: glTF's are linear, others sRGB."""
    colors = np.asarray(colors)[:, :3]
    values = colors / 255 if colors.dtype == np.uint8 else np.clip(colors.astype(np.float64), 0, 1)
    return values if path.suffix.lower() == ".glb" else linear_from_srgb(values)


def _with_material(part: Part, visual: Any, path: Path) -> Part:
    """Base colour of a glTF or MTL material; an MTL's texture replaces its Kd, a glTF's is multiplied by the factor."""
    material = visual.material
    if hasattr(material, "baseColorTexture"):
        picture, factor = material.baseColorTexture, material.baseColorFactor
        color = (255, 255, 255) if factor is None else factor
    else:
        picture = getattr(material, "image", None)
        color = (255, 255, 255) if picture is not None else material.main_color
    red, green, blue = (float(value) / 255 for value in color[:3])
    part = part.painted((red, green, blue))
    if picture is not None and visual.uv is not None:
        return part.textured(np.asarray(visual.uv, dtype=np.float64)[:, :2], _pixels(picture, path))
    if "color" in visual.vertex_attributes:
        return part.colored(_linear(visual.vertex_attributes["color"], path))
    return part


def _pixels(picture: Image.Image, path: Path) -> NDArray[np.uint8]:
    try:
        rgb = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        raise UserError(f"{path}: a texture cannot be decoded ({error}); save the picture again") from error
    if max(rgb.size) > _MAX_TEXTURE_SIDE:
        rgb.thumbnail((_MAX_TEXTURE_SIDE, _MAX_TEXTURE_SIDE))
    return np.asarray(rgb)
