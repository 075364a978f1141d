"""Render a data set of objects and shadows into the folder layout that `shadowlab.tasks.shadow.folder` reads."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from shadowlab.console import Reporter
from shadowlab.distributed import Processes, share_out
from shadowlab.seeding import derive_seed
from shadowlab.tasks.shadow.render.gathering import Gathering, check_empty, gathered
from shadowlab.tasks.shadow.render.lights import choose_light
from shadowlab.tasks.shadow.render.scene import SceneObject, mitsuba
from shadowlab.tasks.shadow.render.sources import Source, check_arguments, object_sources

DEFAULT_SAMPLES_PER_PIXEL = 256
_FOLDERS = ("objects", "masks", "shadows")


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
            check_arguments(num_objects, lights_per_object, image_size, samples_per_pixel, seed, meshes)
            check_empty(out)
            sources = object_sources(seed, num_objects, meshes, checks=processes.is_main)
        asked = _Asked(lights_per_object, image_size, samples_per_pixel, seed)
        rendering = _Rendering(mi, asked, sources, stack.enter_context(gathered(out, _FOLDERS, processes)))
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
    """A data set under way."""

    mi: ModuleType
    asked: _Asked
    sources: Sequence["Source"]
    gathering: Gathering

    def note(self) -> None:
        """Keep what is rendered."""
        objects = [source.digest for source in self.sources]
        self.gathering.note({**asdict(self.asked), "mitsuba": self.mi.__version__, "objects": objects})

    def render(self, share: Sequence[int]) -> Iterator[None]:
        """The objects of these numbers, unless all their pictures are there."""
        asked = self.asked
        for index in share:
            source = self.sources[index]
            names = [_name(source, light) for light in range(asked.lights_per_object)]
            if not self.gathering.has([f"{kind}/{name}" for name in names for kind in _FOLDERS]):
                scene_object = SceneObject(self.mi, source.load())
                picture, mask = scene_object.render_object(asked.image_size, asked.samples_per_pixel)
                for light, name in enumerate(names):
                    noise = derive_seed(asked.seed, "render/noise", index, light) % 2**31
                    shadow = scene_object.render_shadow(
                        *choose_light(asked.seed, index, light), asked.image_size, asked.samples_per_pixel, noise
                    )
                    self.gathering.save({f"objects/{name}": picture, f"masks/{name}": mask, f"shadows/{name}": shadow})
            yield

    def finish(self) -> None:
        """Metadata, and the name that was asked for."""
        metadata: dict[str, dict[str, float | str]] = {}
        for index, source in enumerate(self.sources):
            for light in range(self.asked.lights_per_object):
                theta, phi, size = choose_light(self.asked.seed, index, light)
                metadata[_name(source, light)] = {"theta": theta, "phi": phi, "size": size, "object": source.object_id}
        self.gathering.finish({"metadata.json": json.dumps(metadata, indent=1) + "\n"})


def _name(source: "Source", light: int) -> str:
    return f"{source.object_id}_light_{light}"
