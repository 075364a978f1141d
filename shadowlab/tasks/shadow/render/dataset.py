"""Render a data set of objects and shadows into the folder layout that `shadowlab.tasks.shadow.folder` reads."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diagnostics.files import open_file, read_bytes, replace, replace_text
from shadowlab.console import Reporter
from shadowlab.distributed import Processes, share_out
from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.tasks.shadow.render.lights import choose_light
from shadowlab.tasks.shadow.render.meshes import check_meshes, find_meshes, load_mesh
from shadowlab.tasks.shadow.render.objects import placed_object
from shadowlab.tasks.shadow.render.scene import SceneObject, mitsuba
from shadowlab.tasks.shadow.render.shapes import Part

DEFAULT_SAMPLES_PER_PIXEL = 256
_FOLDERS = ("objects", "masks", "shadows")
_REQUEST = "request.json"  # in the hidden folder: what is rendered there
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def render_dataset(
    out: Path,
    processes: Processes,
    reporter: Reporter,
    *,
    num_objects: int | None,
    lights_per_object: int,
    image_size: int,
    samples_per_pixel: int = DEFAULT_SAMPLES_PER_PIXEL,
    seed: int,
    meshes: Path | None = None,
) -> int:
    """Render `objects/`, `masks/`, `shadows/` and `metadata.json` into the folder `out`.

    The scene is the paper's (Tasar et al., arXiv 2412.11972): the object rests on the ground at the origin; a square
    area light on a sphere of radius 8 faces it; the camera is on the negative y axis. The same arguments give the
    same bytes, whatever the number of processes and threads. Nothing appears under the name `out` before all of it is
    written: until then it lies in the hidden folder `.NAME.partial` next to it, and the same call goes on there.

    Args:
        out: a folder that does not exist yet, or is empty.
        processes: share the objects; each renders one with all its lights.
        num_objects: how many objects; with `meshes` at most that many, in the order of their paths, None for all.
        lights_per_object: each makes a sample; the samples of an object share its picture and mask.
        image_size: side of the square pictures, pixels, at least 16.
        samples_per_pixel: rays per pixel for the shadow and the object. 256 leaves a noise of about 2 grey levels
            in the penumbra, 64 about 5; the time is proportional. Mitsuba rounds primes up, with a warning.
        seed: not negative; chooses shapes, colours, lights and noise.
        meshes: a folder whose OBJ, PLY and GLB files, at any depth, are the objects in place of procedural ones.

    Returns:
        The number of samples written.

    Raises:
        MissingDependencyError: Mitsuba, or with `meshes` trimesh, is not installed.
        UserError: an argument is out of range, `out` has something in it or cannot be written, `meshes` has no mesh
            or unusable ones, or another rendering was begun, or is under way, for `out`.
    """
    with ExitStack() as stack:
        with processes.together():
            mi = stack.enter_context(mitsuba(processes.num_cores() if processes.count > 1 else None))
            _check_arguments(num_objects, lights_per_object, image_size, samples_per_pixel, seed, meshes)
            _check_empty(out)
            sources = _sources(seed, num_objects, meshes, checks=processes.is_main)
        asked = _Asked(lights_per_object, image_size, samples_per_pixel, seed)
        rendering = _Rendering(mi, asked, sources, out, stack.enter_context(_begun(out, processes)))
        with processes.together():
            if processes.is_main:
                rendering.note()
        items = range(len(sources))
        share_out(processes, items, rendering.render, reporter, noun="sample", size=lambda _: lights_per_object)
        with processes.together():
            if processes.is_main:
                rendering.finish()
    return len(sources) * lights_per_object


@dataclass(frozen=True)
class _Asked:
    """The arguments that decide pictures."""

    lights_per_object: int
    image_size: int
    samples_per_pixel: int
    seed: int


@dataclass(frozen=True)
class _Rendering:
    """A data set under way, in `folder`."""

    mi: ModuleType
    asked: _Asked
    sources: Sequence["_Source"]
    out: Path
    folder: Path

    def note(self) -> None:
        """What is rendered; pictures of an earlier, interrupted call stay where it was the same."""
        objects = [source.digest for source in self.sources]
        request = json.dumps({**asdict(self.asked), "mitsuba": self.mi.__version__, "objects": objects}, indent=1)
        noted = self.folder / _REQUEST
        with _writing(self.out):
            if not noted.exists():
                replace_text(noted, request)
            elif read_bytes(noted, limit=2**30) != request.encode():
                raise UserError(
                    f"{self.out}: a rendering with other options was begun in {self.folder} and not finished; give its "
                    "options to go on, remove that folder, or choose another --out"
                )

    def render(self, share: Sequence[int]) -> Iterator[None]:
        """The objects of these numbers, unless all their pictures are there."""
        asked = self.asked
        for index in share:
            source = self.sources[index]
            names = [_name(source, light) for light in range(asked.lights_per_object)]
            if not all(_is_whole(self.folder / kind / f"{name}.png") for name in names for kind in _FOLDERS):
                scene_object = SceneObject(self.mi, source.load())
                picture, mask = scene_object.render_object(asked.image_size, asked.samples_per_pixel)
                for light, name in enumerate(names):
                    noise = derive_seed(asked.seed, "render/noise", index, light) % 2**31
                    shadow = scene_object.render_shadow(
                        *choose_light(asked.seed, index, light), asked.image_size, asked.samples_per_pixel, noise
                    )
                    with _writing(self.out):
                        _save_sample(self.folder, name, objects=picture, masks=mask, shadows=shadow)
            yield

    def finish(self) -> None:
        """Metadata, and the name that was asked for."""
        metadata: dict[str, dict[str, float | str]] = {}
        for index, source in enumerate(self.sources):
            for light in range(self.asked.lights_per_object):
                theta, phi, size = choose_light(self.asked.seed, index, light)
                metadata[_name(source, light)] = {"theta": theta, "phi": phi, "size": size, "object": source.object_id}
        with _writing(self.out):
            replace_text(self.folder / "metadata.json", json.dumps(metadata, indent=1) + "\n")
            for stale in self.folder.glob("*/.*.tmp"):  # of a process that was killed
                stale.unlink()
            place = self.out.resolve()
            with suppress(FileNotFoundError):
                place.rmdir()  # fails where somebody has put something in meanwhile
            (self.folder / _REQUEST).unlink()
            self.folder.rename(place)


def _name(source: "_Source", light: int) -> str:
    return f"{source.object_id}_light_{light}"


def _save_sample(folder: Path, sample: str, **pictures: NDArray[np.uint8]) -> None:
    """pictures: subfolder -> (H, W) or (H, W, 3) uint8."""
    for name, pixels in pictures.items():
        encoded = BytesIO()
        Image.fromarray(pixels).save(encoded, format="PNG", optimize=True)
        replace(folder / name / f"{sample}.png", encoded.getvalue())


def _is_whole(picture: Path) -> bool:
    """Files are renamed into place when they are written; a power cut may still have left one short."""
    try:
        with open_file(picture) as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


@dataclass(frozen=True)
class _Source:
    """Where an object comes from; loaded when its turn comes."""

    object_id: str
    load: Callable[[], list[Part]]
    digest: str
    """Tells it from another; of a mesh, its file as a look at it shows it."""


def _sources(seed: int, num_objects: int | None, meshes: Path | None, *, checks: bool) -> list[_Source]:
    """checks: whether unusable meshes are looked for."""
    if meshes is not None:
        found = find_meshes(meshes, num_objects)
        if checks:
            check_meshes([path for _, path in found])
        return [_Source(object_id, partial(load_mesh, path), _look(object_id, path)) for object_id, path in found]
    assert num_objects is not None  # checked with the arguments
    names = [f"obj_{index:04d}" for index in range(num_objects)]
    return [_Source(name, partial(placed_object, seed, index), name) for index, name in enumerate(names)]


def _look(object_id: str, path: Path) -> str:
    status = path.stat()
    return f"{object_id} {status.st_size} {status.st_mtime_ns}"


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
def _begun(out: Path, processes: Processes) -> Iterator[Path]:
    """The hidden folder next to `out` in which the pictures gather; one command at a time writes into it."""
    place = out.resolve()
    folder = place.parent / f".{place.name}.partial"
    lock = -1
    try:
        with processes.together():
            if processes.is_main:
                with _writing(out):
                    for name in _FOLDERS:
                        (folder / name).mkdir(parents=True, exist_ok=True)
                    lock = os.open(folder, os.O_RDONLY)
                    _claim(lock, out)
        yield folder
    finally:
        if lock >= 0:
            os.close(lock)


def _claim(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{out}: another command is rendering it; wait for it, or choose another --out") from None


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); free some space, or choose another folder") from error
