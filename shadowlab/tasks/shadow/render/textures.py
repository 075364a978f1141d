"""Which textures that a mesh file names cannot be used. trimesh drops them without a word."""

import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from diagnostics.files import MOST_BYTES, open_file, parse_json, read_lines

_GLB_HEADER, _GLB_CHUNK_HEADER = 12, 8  # bytes
_READABLE = (None, "image/png", "image/jpeg", "image/webp")


def unusable_textures(path: Path) -> list[str]:
    """One reason for each base colour texture or material file that `path`, a GLB or OBJ file, names in vain.

    `path` has been read by trimesh without error. PLY files name none.
    """
    suffix = path.suffix.lower()
    if suffix == ".glb":
        return list(_in_glb(path))
    return list(_in_obj(path)) if suffix == ".obj" else []


def _in_glb(path: Path) -> Iterator[str]:
    with open_file(path) as file:
        file.seek(_GLB_HEADER)
        length, _ = struct.unpack("<II", file.read(_GLB_CHUNK_HEADER))
        header = parse_json(file.read(min(length, MOST_BYTES)))
    images, textures = header.get("images", []), header.get("textures", [])
    for material in header.get("materials", []):
        reference = material.get("pbrMetallicRoughness", {}).get("baseColorTexture")
        if reference is None:
            continue
        source = textures[reference["index"]].get("source")
        image = None if source is None else images[source]
        if image is None or image.get("mimeType") not in _READABLE:
            yield f"material {material.get('name', '')!r} has a texture of a kind that is not supported"
        elif "uri" in image and not image["uri"].startswith("data:"):
            yield from _unreadable(path.parent / unquote(image["uri"]))


def _in_obj(path: Path) -> Iterator[str]:
    for library in _values(path, "mtllib"):
        materials = path.parent / library
        if not materials.is_file():
            yield f"material file {materials} is missing"
            continue
        for name in _values(materials, "map_kd"):
            yield from _unreadable(path.parent / name)


def _values(path: Path, keyword: str) -> Iterator[str]:
    """What follows `keyword` on the lines of a text file."""
    with open_file(path) as file:
        for line in read_lines(file, str(path)):
            word, _, value = line.decode("utf-8", "replace").strip().partition(" ")
            if word.lower() == keyword and value.strip():
                yield value.strip()


def _unreadable(picture: Path) -> Iterator[str]:
    if not picture.is_file():
        yield f"texture {picture} is missing"
        return
    try:
        with open_file(picture) as file, Image.open(file):
            pass
    except OSError:
        yield f"texture {picture} is not a picture"
