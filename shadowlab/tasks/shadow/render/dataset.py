"""Render a data set of objects and shadows into the folder layout that `shadowlab.tasks.shadow.folder` reads."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.tasks.shadow.render.lights import choose_light
from shadowlab.tasks.shadow.render.meshes import check_meshes, find_meshes, load_mesh
from shadowlab.tasks.shadow.render.objects import placed_object
from shadowlab.tasks.shadow.render.scene import SceneObject, mitsuba
from shadowlab.tasks.shadow.render.shapes import Part

DEFAULT_SAMPLES_PER_PIXEL = 256


def render_dataset(
    out: Path,
    *,
    num_objects: int | None,
    lights_per_object: int,
    image_size: int,
    samples_per_pixel: int = DEFAULT_SAMPLES_PER_PIXEL,
    seed: int,
    meshes: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Render `objects/`, `masks/`, `shadows/` and `metadata.json` into the folder `out`.

    The scene is the paper's (Tasar et al., arXiv 2412.11972): the object rests on the ground at the origin; a square
    area light on a sphere of radius 8 faces it; the camera is on the negative y axis. The same arguments give the
    same bytes, whatever the number of threads. Nothing appears under the name `out` before all of it is written; a
    process that is killed leaves a hidden folder `.NAME.partial-PID` next to it.

    Args:
        out: a folder that does not exist yet, or is empty.
        num_objects: how many objects; with `meshes` at most that many, in the order of their paths, None for all.
        lights_per_object: each makes a sample; the samples of an object share its picture and mask.
        image_size: side of the square pictures, pixels, at least 16.
        samples_per_pixel: rays per pixel for the shadow and the object. 256 leaves a noise of about 2 grey levels
            in the penumbra, 64 about 5; the time is proportional. Mitsuba rounds primes up, with a warning.
        seed: not negative; chooses shapes, colours, lights and noise.
        meshes: a folder whose OBJ, PLY and GLB files, at any depth, are the objects in place of procedural ones.
        on_progress: called with (samples done, samples in all) after each sample.

    Returns:
        The number of samples written.

    Raises:
        MissingDependencyError: Mitsuba, or with `meshes` trimesh, is not installed.
        UserError: an argument is out of range, `out` has something in it or cannot be written, or `meshes` has no
            mesh or unusable ones.
    """
    _check_arguments(num_objects, lights_per_object, image_size, samples_per_pixel, seed, meshes)
    _check_empty(out)
    with mitsuba() as mi:
        sources = _sources(seed, num_objects, meshes)
        total = len(sources) * lights_per_object
        metadata: dict[str, dict[str, float | str]] = {}
        with _finished_or_nothing(out) as folder:
            for index, source in enumerate(sources):
                scene_object = SceneObject(mi, source.load())
                picture, mask = scene_object.render_object(image_size, samples_per_pixel)
                for light in range(lights_per_object):
                    theta, phi, size = choose_light(seed, index, light)
                    sample = f"{source.object_id}_light_{light}"
                    noise = derive_seed(seed, "render/noise", index, light) % 2**31
                    shadow = scene_object.render_shadow(theta, phi, size, image_size, samples_per_pixel, noise)
                    with _writing(out):
                        _save_sample(folder, sample, objects=picture, masks=mask, shadows=shadow)
                    metadata[sample] = {"theta": theta, "phi": phi, "size": size, "object": source.object_id}
                    if on_progress is not None:
                        on_progress(len(metadata), total)
            with _writing(out):
                (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    return len(metadata)


def _save_sample(folder: Path, sample: str, **pictures: NDArray[np.uint8]) -> None:
    """pictures: subfolder -> (H, W) or (H, W, 3) uint8."""
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / name / f"{sample}.png", optimize=True)


@dataclass(frozen=True)
class _Source:
    """Where an object comes from; loaded when its turn comes."""

    object_id: str
    load: Callable[[], list[Part]]


def _sources(seed: int, num_objects: int | None, meshes: Path | None) -> list[_Source]:
    if meshes is not None:
        found = find_meshes(meshes, num_objects)
        check_meshes([path for _, path in found])
        return [_Source(object_id, partial(load_mesh, path)) for object_id, path in found]
    assert num_objects is not None  # checked with the arguments
    return [_Source(f"obj_{index:04d}", partial(placed_object, seed, index)) for index in range(num_objects)]


def _check_arguments(
    num_objects: int | None, lights: int, image_size: int, samples_per_pixel: int, seed: int, meshes: Path | None
) -> None:
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


def _check_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty; give a new one, or empty it first")


@contextmanager
def _finished_or_nothing(out: Path) -> Iterator[Path]:
    """A folder next to `out` that takes its name when the block ends, and is removed when the block fails."""
    out = out.resolve()
    folder = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        with _writing(out):
            for name in ("objects", "masks", "shadows"):
                (folder / name).mkdir(parents=True)
        yield folder
        with _writing(out):
            if out.exists():
                out.rmdir()  # fails where somebody has put something in meanwhile
            folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); free some space, or choose another folder") from error
