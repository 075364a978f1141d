"""Small data sets of insertion, composed from the renders of the shadow task that ship: an object and its shadow on
ground that is drawn, the object's own picture, and the box into which it goes.

    OUT/pairs.csv   OUT/targets/obj_0000_0.png   OUT/masks/obj_0000_0.png   OUT/objects/obj_0000.png

What is drawn is a function of (seed, object, number) alone.

Legend: S side in pixels of what is written.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import shadowlab
from diagnostics.files import create, replace_text
from shadowlab.console import Reporter
from shadowlab.data import check_image_size, decode, read_file
from shadowlab.distributed import Processes, share_out
from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.tasks.insertion.file_list import COLUMNS

LIST = "pairs.csv"
SHIPPED_RENDERS = Path(shadowlab.__file__).parent / "assets" / "renders"
_GREY = 128
_MARGIN = 0.06  # of the side, around the object's box
_DARKEST = 0.65  # of the ground's light that a full shadow takes

Picture = np.ndarray


def render_insertions(
    out: Path,
    processes: Processes,
    reporter: Reporter,
    *,
    num_objects: int | None,
    per_object: int,
    image_size: int,
    seed: int,
    renders: Path | None = None,
) -> int:
    """Write a data set into the new folder `out`.

    Args:
        num_objects: of those in `renders`; None: all.
        renders: a folder as `data render` makes it for shadows; None: the one that ships.

    Returns:
        The number of rows.

    Raises:
        UserError: there are no renders or not so many objects, `out` is there already, or it cannot be written.
    """
    check_image_size(image_size)
    source = SHIPPED_RENDERS if renders is None else renders
    known = _renders_of(source)
    count = len(known) if num_objects is None else num_objects
    if not 1 <= count <= len(known):
        raise UserError(f"--objects {count}: {source} shows {len(known)} objects; give fewer, or --renders DIR")
    with processes.together():
        if processes.is_main:
            if out.exists():
                raise UserError(f"{out}: is there already; choose a new folder")
            for name in ("targets", "masks", "objects"):
                (out / name).mkdir(parents=True)
    names = sorted(known)[:count]
    jobs = [(name, k) for name in names for k in range(per_object)]

    def work(numbers: Sequence[tuple[str, int]]) -> Iterable[None]:
        for name, k in numbers:
            _write(out, name, k, known[name][k % len(known[name])], image_size, seed)
            yield None

    share_out(processes, jobs, work, reporter, noun="row")
    with processes.together():
        if processes.is_main:
            rows = [f"targets/{name}_{k}.png,objects/{name}.png,masks/{name}_{k}.png" for name, k in jobs]
            replace_text(out / LIST, "\n".join([",".join(COLUMNS), *rows]) + "\n")
    return len(jobs)


def _renders_of(folder: Path) -> dict[str, list[Path]]:
    """Object -> its renders, files in objects/."""
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted((folder / "objects").glob("*_light_*.png")):
        found[file.stem.rpartition("_light_")[0]].append(file)
    if not found:
        raise UserError(f"{folder}: no objects/OBJECT_light_N.png; give a folder of shadowlab data render")
    return found


def _write(out: Path, name: str, k: int, render: Path, side: int, seed: int) -> None:
    target, mask, own = composed(render, f"{name}/{k}", side, seed)
    pictures = {f"targets/{name}_{k}.png": target, f"masks/{name}_{k}.png": mask}
    if k == 0:
        pictures[f"objects/{name}.png"] = own
    for file, levels in pictures.items():
        with create(out / file) as stream:
            Image.fromarray(levels).save(stream, "PNG")


def composed(render: Path, name: str, side: int, seed: int) -> tuple[Picture, Picture, Picture]:
    """Target (S, S, 3), mask (S, S) and the object's own picture (S, S, 3), uint8. render: its file in objects/."""
    rng = np.random.default_rng(derive_seed(seed, "insertion", name))
    files = [render, *(render.parents[1] / folder / render.name for folder in ("masks", "shadows"))]
    colour, cover, shadow = map(_levels, files)
    rows, columns = np.nonzero(cover[..., 0] > 0.5)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    longer = max(bottom - top, right - left)
    scale = side * rng.uniform(0.38, 0.56) / longer
    box = [round(scale * one) for one in (top, bottom, left, right)]
    x = round(rng.uniform(0.08, 0.92) * (side - (box[3] - box[2]))) - box[2]
    y = round(rng.uniform(0.62, 0.92) * side) - box[1]
    placed = [_placed(one, scale, x, y, side) for one in (colour, cover, shadow)]
    ground = _ground(rng, side) * (1 - _DARKEST * placed[2])
    target = placed[0] * placed[1] + ground * (1 - placed[1])
    mask = np.zeros((side, side), np.uint8)
    margin = max(1, round(_MARGIN * side))
    mask[max(0, box[0] + y - margin) : box[1] + y + margin, max(0, box[2] + x - margin) : box[3] + x + margin] = 255
    return _bytes(target), mask, _own_picture(colour, cover, (top, bottom, left, right), side)


def _levels(file: Path) -> Picture:
    """(H, W, 3 or 1) float64 in [0, 1]."""
    levels = np.asarray(decode(read_file(file), str(file)), np.float64) / 255
    return levels if levels.ndim == 3 else levels[..., None]


def _placed(picture: Picture, scale: float, x: int, y: int, side: int) -> Picture:
    """Scaled, moved by (x, y) pixels and cut to (S, S, channels); nothing is where it did not reach."""
    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    small = np.stack([_resized(picture[..., c], size) for c in range(picture.shape[2])], axis=2)
    found = np.zeros((side, side, picture.shape[2]))
    rows = slice(max(0, y), min(side, y + size[1]))
    columns = slice(max(0, x), min(side, x + size[0]))
    found[rows, columns] = small[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    return found


def _resized(channel: Picture, size: tuple[int, int]) -> Picture:
    image = Image.fromarray(channel.astype(np.float32))
    return np.asarray(
        image.resize(size, Image.Resampling.BOX if size[0] < channel.shape[1] else Image.Resampling.BILINEAR)
    )


def _ground(rng: np.random.Generator, side: int) -> Picture:
    """Wall and floor of two colours with a pattern, lit from one side, (S, S, 3) in [0, 1]."""
    y, x = np.mgrid[:side, :side] / side
    horizon = rng.uniform(0.25, 0.45)
    wall, floor, other = rng.uniform(0.25, 0.95, (3, 3))
    step, kind = rng.uniform(0.12, 0.3), rng.integers(3)
    depth = np.maximum(y - horizon, 0) + 0.15
    across = (x - 0.5) / depth
    stripes = np.floor(across / (4 * step)) + (np.floor(4 / depth / (16 * step)) if kind == 2 else 0)
    is_other = (stripes % 2 == 0) & (kind > 0)
    picture = np.where((y < horizon)[..., None], wall, np.where(is_other[..., None], other, floor))
    light = 1 - 0.35 * np.abs(x - rng.uniform(0, 1)) - 0.15 * y
    return np.clip(picture * light[..., None], 0, 1)


def _own_picture(colour: Picture, cover: Picture, box: tuple[int, int, int, int], side: int) -> Picture:
    """The object alone on grey, in the middle, its longer side 0.84 S, (S, S, 3) uint8."""
    top, bottom, left, right = box
    scale = 0.84 * side / max(bottom - top, right - left)
    x = round((side - scale * (right - left)) / 2 - scale * left)
    y = round((side - scale * (bottom - top)) / 2 - scale * top)
    rgb, alpha = (_placed(one, scale, x, y, side) for one in (colour, cover))
    return _bytes(rgb * alpha + _GREY / 255 * (1 - alpha))


def _bytes(picture: Picture) -> Picture:
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
