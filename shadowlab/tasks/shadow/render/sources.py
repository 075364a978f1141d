"""Where objects come from: procedural ones by number, or meshes from files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shadowlab.errors import UserError
from shadowlab.tasks.shadow.render.meshes import check_meshes, find_meshes, load_mesh
from shadowlab.tasks.shadow.render.objects import placed_object
from shadowlab.tasks.shadow.render.shapes import Part


@dataclass(frozen=True)
class Source:
    """Where an object comes from; loaded when its turn comes."""

    object_id: str
    load: Callable[[], list[Part]]
    digest: str
    """Tells it from another; of a mesh, its file as a look at it shows it."""


def object_sources(seed: int, num_objects: int | None, meshes: Path | None, *, checks: bool) -> list[Source]:
    """The objects of a data set: `num_objects` procedural ones, or the meshes of a folder, at most so many.

    Args:
        num_objects: of meshes None for all.
        checks: whether unusable meshes are looked for.

    Raises:
        UserError: there is no mesh, or one cannot be used.
        MissingDependencyError: trimesh is not installed.
    """
    if meshes is not None:
        found = find_meshes(meshes, num_objects)
        if checks:
            check_meshes([path for _, path in found])
        return [Source(object_id, partial(load_mesh, path), _look(object_id, path)) for object_id, path in found]
    assert num_objects is not None  # checked with the arguments
    names = [f"obj_{index:04d}" for index in range(num_objects)]
    return [Source(name, partial(placed_object, seed, index), name) for index, name in enumerate(names)]


def _look(object_id: str, path: Path) -> str:
    status = path.stat()
    return f"{object_id} {status.st_size} {status.st_mtime_ns}"


def check_arguments(
    num_objects: int | None, lights: int, image_size: int, samples_per_pixel: int, seed: int, meshes: Path | None
) -> None:
    """Raise UserError where a rendering could not have these arguments."""
    if num_objects is None and meshes is None:
        raise UserError("number of objects: not given; without a folder of meshes say how many to make")
    least = {
        "number of objects": (1 if num_objects is None else num_objects, 1),
        "lights per object": (lights, 1),
        "image size": (image_size, 16),
        "samples per pixel": (samples_per_pixel, 1),
        "seed": (seed, 0),
    }
    for name, (value, low) in least.items():
        if value < low:
            raise UserError(f"{name}: {value} is too small; give at least {low}")
