"""Render the data of all three edits into one folder: pictures, and a list (CSV) for each edit.

whole/ID.png empty/ID.png mask/ID.png     a scene with its object, without it and its shadow, and where they differ
photographs/NAME_K.png                    parts of photographs
casts/...png                              photographs and scenes under gains
object-removal.csv white-balance.csv paint-to-image.csv
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from shadowlab.console import Reporter
from shadowlab.distributed import Processes, share_out
from shadowlab.seeding import derive_seed
from shadowlab.tasks.albedo.render import Photograph, dressed, find_photographs, ground_picture
from shadowlab.tasks.editing.edits import GAINS
from shadowlab.tasks.editing.render.casts import choose_gains, part_of, under_gains
from shadowlab.tasks.editing.render.scene import RemovalScene, choose_lights
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

FOLDERS = ("whole", "empty", "mask", "photographs", "casts")
PARTS = 12
"""Of each photograph."""
_CASTS = 2
"""Of each part of a photograph; a scene has one."""
Row = Mapping[str, str]


def render_edits(
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
    """Render pictures and lists into the folder `out`.

    The same arguments give the same bytes, whatever the number of processes and threads; an interrupted call goes on,
    as `render_dataset` of the shadow task.

    Args:
        out: a folder that does not exist yet, or is empty.
        processes: share the objects; each renders one with all its lights.
        num_objects: how many; with `meshes` at most that many, in the order of their paths, None for all.
        lights_per_object: each makes a scene.
        image_size: side of the square pictures, pixels, at least 16.
        samples_per_pixel: rays per pixel.
        seed: not negative; chooses shapes, surfaces, lights, gains and noise.
        meshes: a folder of OBJ, PLY and GLB files in place of procedural objects. Their own colours stay.
        textures: a folder of PNG and JPEG photographs, taken for sRGB and for rightly balanced; None: the lists of
            white-balance and paint-to-image hold scenes alone. Parts of one photograph count as one object.

    Returns:
        The number of scenes written.

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
        gathering = stack.enter_context(gathered(out, FOLDERS, processes))
        rendering = _Rendering(mi, asked, sources, photographs, gathering, keeps=meshes is not None)
        with processes.together():
            if processes.is_main:
                rendering.note()
        items = range(len(sources))
        share_out(processes, items, rendering.render, reporter, noun="scene", size=lambda _: lights_per_object)
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
        content = {"task": "editing", "mitsuba": self.mi.__version__, "objects": objects, "photographs": pictures}
        self.gathering.note({**asdict(self.asked), **content})

    def render(self, share: Sequence[int]) -> Iterator[None]:
        """The objects of these numbers, unless all their pictures are there."""
        asked = self.asked
        for index in share:
            names = self._names(index)
            wanted = [f"{folder}/{name}" for name in names for folder in ("whole", "empty", "mask", "casts")]
            if not self.gathering.has(wanted):
                scene = self._scene(index)
                noise = derive_seed(asked.seed, "editing/noise", index) % 2**31
                for light, name in enumerate(names):
                    lights = choose_lights(asked.seed, index, light)
                    seen = scene.render(lights, asked.image_size, asked.samples_per_pixel, noise)
                    tinted = under_gains(seen.whole, self._gains(name, 0))
                    pictures = {"whole": seen.whole, "empty": seen.empty, "mask": seen.mask, "casts": tinted}
                    self.gathering.save({f"{folder}/{name}": picture for folder, picture in pictures.items()})
            yield

    def finish(self) -> None:
        """Photographs, lists, and the name that was asked for."""
        removal: list[Row] = []
        casts: list[Row] = []
        paintings: list[Row] = []
        for index, source in enumerate(self.sources):
            for name in self._names(index):
                whole = f"whole/{name}.png"
                own = {"object": source.object_id}
                removal.append({"input": whole, "target": f"empty/{name}.png", "mask": f"mask/{name}.png"} | own)
                casts.append(self._cast(f"casts/{name}.png", whole, self._gains(name, 0)) | own | {"track": "renders"})
                paintings.append({"target": whole} | own | {"track": "renders"})
        for name, owner in self._save_photographs():
            target, own = f"photographs/{name}.png", {"object": owner, "track": "photographs"}
            paintings.append({"target": target} | own)
            casts += [self._cast(f"casts/{name}_{k}.png", target, self._gains(name, k)) | own for k in range(_CASTS)]
        lists = {"object-removal": removal, "white-balance": casts, "paint-to-image": paintings}
        self.gathering.finish({f"{name}.csv": _as_csv(rows) for name, rows in lists.items()})

    def _save_photographs(self) -> list[tuple[str, str]]:
        """Name of each part, and its photograph."""
        found = []
        for number, one in enumerate(self.photographs):
            pixels = one.pixels()
            for part in range(PARTS):
                rng = random_generator(self.asked.seed, "editing/part", number, part)
                name, picture = f"photo_{number:02d}_{part:02d}", part_of(pixels, rng, self.asked.image_size)
                made = {f"casts/{name}_{k}": under_gains(picture, self._gains(name, k)) for k in range(_CASTS)}
                self.gathering.save({f"photographs/{name}": picture, **made})
                found.append((name, f"photograph {Path(one.name).with_suffix('').as_posix()}"))
        return found

    def _cast(self, given: str, target: str, gains: Sequence[float]) -> dict[str, str]:
        return {"input": given, "target": target} | dict(zip(GAINS, map(repr, gains), strict=True))

    def _gains(self, name: str, number: int) -> tuple[float, float, float]:
        return choose_gains(random_generator(self.asked.seed, "editing/gains", name, number))

    def _names(self, index: int) -> list[str]:
        return [f"{self.sources[index].object_id}_light_{light}" for light in range(self.asked.lights_per_object)]

    def _scene(self, index: int) -> RemovalScene:
        rng = random_generator(self.asked.seed, "editing/surface", index)
        ground = ground_picture(rng, None)
        parts = dressed(self.sources[index].load(), rng, None, keeps=self.keeps)
        return RemovalScene(self.mi, parts, ground)


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO(newline="")
    lines = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    return text.getvalue()
