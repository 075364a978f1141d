"""Render a data set of beauty and albedo into the folder layout of `shadowlab.tasks.albedo.folder`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import numpy as np

from shadowlab.console import Reporter
from shadowlab.distributed import Processes, share_out
from shadowlab.seeding import derive_seed
from shadowlab.tasks.albedo.folder import FOLDERS, METADATA
from shadowlab.tasks.albedo.render.lighting import Lighting, choose_lighting
from shadowlab.tasks.albedo.render.patterns import Picture, dressed, ground_picture
from shadowlab.tasks.albedo.render.photographs import Photograph, find_photographs
from shadowlab.tasks.albedo.render.scene import AlbedoScene
from shadowlab.tasks.shadow.render import (
    Gathering,
    Source,
    check_arguments,
    check_empty,
    gathered,
    mitsuba,
    object_sources,
    random_generator,
)

FILENAME_LIST = "filename_list.txt"
"""Marigold's way to name pairs: `beauty albedo` a line; the whole set, in the order of ids."""
_GROUND = (1.6, 5.0)  # half side of the ground: of the smallest, the camera sees all four edges


def render_pairs(
    out: Path,
    processes: Processes,
    reporter: Reporter,
    *,
    num_objects: int | None,
    lights_per_object: int,
    image_size: int,
    samples_per_pixel: int,
    seed: int,
    meshes: Path | None = None,
    textures: Path | None = None,
) -> int:
    """Render `beauty/`, `albedo/`, `valid/`, `metadata.json` and `filename_list.txt` into the folder `out`.

    An object with surfaces of its own stands on a ground with one of its own, under a coloured square light and a
    coloured sky. The same arguments give the same bytes, whatever the number of processes and threads; an interrupted
    call goes on, as `render_dataset` of the shadow task.

    Args:
        out: a folder that does not exist yet, or is empty.
        processes: share the objects; each renders one with all its lights.
        num_objects: how many; with `meshes` at most that many, in the order of their paths, None for all.
        lights_per_object: each makes a sample.
        image_size: side of the square pictures, pixels, at least 16.
        samples_per_pixel: rays per pixel; 64 leaves a noise of about 3 grey levels in half shadows.
        seed: not negative; chooses shapes, surfaces, lights and noise.
        meshes: a folder of OBJ, PLY and GLB files in place of procedural objects. Their own colours stay.
        textures: a folder of PNG and JPEG photographs. Each object gets one, on itself or on its ground; objects with
            one photograph count as one object for the split, so that no surface is on both sides of it.

    Returns:
        The number of samples written.

    Raises:
        MissingDependencyError: Mitsuba, or with `meshes` trimesh, is not installed.
        UserError: an argument is out of range, `out` has something in it or cannot be written, a mesh or a photograph
            cannot be used, or another rendering was begun, or is under way, for `out`.
    """
    with ExitStack() as stack:
        with processes.together():
            mi = stack.enter_context(mitsuba(processes.num_cores() if processes.count > 1 else None))
            check_arguments(num_objects, lights_per_object, image_size, samples_per_pixel, seed, meshes)
            check_empty(out)
            sources = object_sources(seed, num_objects, meshes, checks=processes.is_main)
            photographs = [] if textures is None else find_photographs(textures)
        asked = _Asked(lights_per_object, image_size, samples_per_pixel, seed)
        gathering = stack.enter_context(gathered(out, [*FOLDERS.values()], processes))
        rendering = _Rendering(mi, asked, sources, photographs, gathering, keeps=meshes is not None)
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
    sources: Sequence[Source]
    photographs: Sequence[Photograph]
    gathering: Gathering
    keeps: bool
    """Whether parts that say something of their colour stay as they are."""

    def note(self) -> None:
        """Keep what is rendered."""
        pictures = [f"{one.name} {sha256(one.pixels().tobytes()).hexdigest()}" for one in self.photographs]
        objects = [source.digest for source in self.sources]
        content = {"task": "albedo", "mitsuba": self.mi.__version__, "objects": objects, "photographs": pictures}
        self.gathering.note({**asdict(self.asked), **content})

    def render(self, share: Sequence[int]) -> Iterator[None]:
        """The objects of these numbers, unless all their pictures are there."""
        asked = self.asked
        for index in share:
            names = self._names(index)
            if not self.gathering.has([f"{folder}/{name}" for name in names for folder in FOLDERS.values()]):
                scene = self._scene(index)
                noise = derive_seed(asked.seed, "albedo/noise", index) % 2**31
                for name, light in zip(names, self._lights(index), strict=True):
                    seen = scene.render(light, asked.image_size, asked.samples_per_pixel, noise)
                    pictures = {"beauty": seen.beauty, "albedo": seen.albedo, "valid": seen.valid}
                    self.gathering.save({f"{FOLDERS[role]}/{name}": picture for role, picture in pictures.items()})
            yield

    def finish(self) -> None:
        """Metadata, the list of pairs, and the name that was asked for."""
        samples: dict[str, dict[str, object]] = {}
        for index in range(len(self.sources)):
            for name in self._names(index):
                samples[name] = {"object": self._group(index)}
        metadata = {"colour_space": {"beauty": "srgb", "albedo": "srgb"}, "samples": samples}
        pairs = [f"{FOLDERS['beauty']}/{name}.png {FOLDERS['albedo']}/{name}.png" for name in sorted(samples)]
        self.gathering.finish({METADATA: json.dumps(metadata, indent=1) + "\n", FILENAME_LIST: "\n".join(pairs) + "\n"})

    def _names(self, index: int) -> list[str]:
        return [f"{self.sources[index].object_id}_light_{light}" for light in range(self.asked.lights_per_object)]

    def _lights(self, index: int) -> list[Lighting]:
        return [choose_lighting(self.asked.seed, index, light) for light in range(self.asked.lights_per_object)]

    def _photograph(self, index: int) -> Photograph | None:
        return self.photographs[index % len(self.photographs)] if self.photographs else None

    def _group(self, index: int) -> str:
        """What a split must not separate."""
        photograph = self._photograph(index)
        return self.sources[index].object_id if photograph is None else f"photograph {photograph.name}"

    def _scene(self, index: int) -> AlbedoScene:
        rng = random_generator(self.asked.seed, "albedo/surface", index)
        radius = float(np.round(rng.uniform(*_GROUND), 2))
        found = self._photograph(index)
        picture: Picture | None = None if found is None else found.pixels()
        on_ground = bool(rng.integers(2))
        ground = ground_picture(rng, picture if on_ground else None)
        parts = dressed(self.sources[index].load(), rng, None if on_ground else picture, keeps=self.keeps)
        return AlbedoScene(self.mi, parts, ground, radius)
