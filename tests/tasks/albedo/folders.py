"""Small data sets of beauty and albedo, made of numbers: textured surfaces times shading, with shadows.

Legend: H W pixels.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from shadowlab.seeding import derive_seed

Picture = np.ndarray


def to_srgb(linear: Picture) -> Picture:
    """(H, W, 3) float64 in [0, 1]; the standard's curve, written once more."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def albedo_of(number: int, side: int) -> Picture:
    """Coloured tiles and two discs, (H, W, 3) linear in [0.05, 0.9]."""
    rng = np.random.default_rng(derive_seed(0, "albedo", number))
    tiles = rng.uniform(0.05, 0.9, (4, 4, 3))
    picture = tiles.repeat(-(-side // 4), axis=0).repeat(-(-side // 4), axis=1)[:side, :side]
    y, x = np.mgrid[:side, :side] / side
    for _ in range(2):
        centre, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.12, 0.25)
        picture[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = rng.uniform(0.05, 0.9, 3)
    return picture


def shading_of(number: int, light: int, side: int) -> Picture:
    """A smooth light with a shadow's edge, (H, W, 3) in (0, 1]: slightly coloured."""
    rng = np.random.default_rng(derive_seed(0, "shading", number, light))
    y, x = np.mgrid[:side, :side] / side - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    across = x * np.cos(angle) + y * np.sin(angle)
    smooth = 0.75 + 0.5 * across * rng.uniform(-1, 1)
    shadow = np.where(across > rng.uniform(-0.1, 0.3), 0.45, 1.0)
    return (smooth * shadow)[..., None] * np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.75, 1.0)])


def pair(number: int, light: int, side: int) -> tuple[Picture, Picture]:
    """Beauty and albedo, (H, W, 3) linear in [0, 1]."""
    albedo = albedo_of(number, side)
    return (albedo * shading_of(number, light, side)).clip(0, 1), albedo


def save(picture: Picture, path: Path, space: str) -> None:
    """picture: (H, W, 3) linear, or (H, W) in [0, 1], which is saved as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = to_srgb(picture) if space == "srgb" and picture.ndim == 3 else picture
    Image.fromarray((values * 255).round().astype(np.uint8)).save(path)


def make_folder(
    root: Path,
    num_objects: int = 4,
    lights: int = 2,
    side: int = 64,
    *,
    first: int = 0,
    spaces: tuple[str, str] = ("srgb", "srgb"),
    declared: object = "as they are",
    masks: bool = False,
) -> Path:
    """A folder in the layout of `shadowlab.tasks.albedo.folder`. first: number of the first object."""
    samples = {}
    for number in range(first, first + num_objects):
        for light in range(lights):
            name = f"obj_{number:04d}_light_{light}"
            for folder, picture, space in zip(("beauty", "albedo"), pair(number, light, side), spaces, strict=True):
                save(picture, root / folder / f"{name}.png", space)
            if masks:
                mask = np.ones((side, side))
                mask[: side // 4] = 0
                save(mask, root / "valid" / f"{name}.png", "linear")
            samples[name] = {"object": f"obj_{number:04d}"}
    metadata: dict[str, object] = {"samples": samples}
    if declared == "as they are":
        declared = dict(zip(("beauty", "albedo"), spaces, strict=True))
    if declared is not None:
        metadata["colour_space"] = declared
    (root / "metadata.json").write_text(json.dumps(metadata))
    return root


def make_list(root: Path, name: str = "filename_list.txt", **how: object) -> Path:
    """The same with a list of its pairs and no metadata. how: as `make_folder`."""
    make_folder(root, **how)  # type: ignore[arg-type]
    (root / "metadata.json").unlink()
    stems = sorted(file.stem for file in (root / "beauty").iterdir())
    (root / name).write_text("\n".join(f"beauty/{stem}.png albedo/{stem}.png" for stem in stems) + "\n")
    return root / name
