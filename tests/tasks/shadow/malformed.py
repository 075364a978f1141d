"""Malformed data sets, each with one fault, and what must be said about it.

`python -m tests.tasks.shadow.malformed FOLDER` writes them all. Each starts from a sound set of three samples.
"""

import io
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tasks.shadow.sound import (
    ROLES,
    SIDE,
    Metadata,
    encode,
    make_folder,
    mask_picture,
    object_picture,
    shadow_picture,
    sound_pictures,
    write_metadata,
)

VICTIM = "img_00001"
LIGHT: dict[str, object] = {"theta": 15.0, "phi": 45.0, "size": 4.0}


@dataclass(frozen=True)
class Case:
    """A data set with one fault.

    Attributes:
        name: of the case; a file or folder of its own below the root.
        path: what to give to `open_dataset` or `check_dataset`.
        sample: text that must be named.
        expect: fragment of the message.
    """

    name: str
    path: Path
    sample: str
    expect: str


def make_all(root: Path) -> list[Case]:
    """Write every malformed data set below `root`."""
    from tests.tasks.shadow.malformed_tar import make_tar_cases  # it needs Case

    return make_folder_cases(root) + make_tar_cases(root)


def make_folder_cases(root: Path) -> list[Case]:
    cases = []
    for name, sample, expect, damage in STRUCTURE_FAULTS:
        damage(root / name, make_folder(root / name))
        cases.append(Case(name, root / name, sample, expect))
    for name, role, data, expect in picture_faults():
        make_folder(root / name)
        (root / name / f"{role}s/{VICTIM}.png").write_bytes(data)
        cases.append(Case(name, root / name, VICTIM, expect))
    for name, entry, expect in ENTRY_FAULTS:
        write_metadata(root / name, {**make_folder(root / name), VICTIM: entry})
        cases.append(Case(name, root / name, VICTIM, expect))
    return cases


# --- one entry of metadata.json ------------------------------------------------------------------------------------

ENTRY_FAULTS: list[tuple[str, object, str]] = [
    ("theta_45_5", {**LIGHT, "theta": 45.5}, "theta = 45.5"),
    ("phi_minus_1", {**LIGHT, "phi": -1}, "phi = -1"),
    ("phi_361", {**LIGHT, "phi": 361}, "phi = 361"),
    ("size_1_9", {**LIGHT, "size": 1.9}, "size = 1.9"),
    ("nan_literal", {**LIGHT, "theta": float("nan")}, "theta = nan"),
    ("infinity_literal", {**LIGHT, "size": float("inf")}, "size = inf"),
    ("nan_as_text", {**LIGHT, "theta": "NaN"}, "theta is the text 'NaN'"),
    ("number_as_text", {**LIGHT, "phi": "45"}, "phi is the text '45'"),
    ("boolean_light", {**LIGHT, "theta": True}, "theta is true"),
    ("null_light", {**LIGHT, "size": None}, "size is null"),
    ("missing_key", {"theta": 15.0, "phi": 45.0}, "key 'size' is missing"),
    ("unknown_key", {**LIGHT, "teta": 3.0}, "the nearest valid key is 'theta'"),
    ("both_sizes", {**LIGHT, "light_size": 4.0}, "both 'size' and 'light_size'"),
    ("object_is_number", {**LIGHT, "object": 3}, "object is the number 3"),
    ("entry_is_list", [15.0, 45.0, 4.0], "the entry is a list"),
]

# --- one picture ---------------------------------------------------------------------------------------------------


def picture_faults() -> list[tuple[str, str, bytes, str]]:
    """(name, role, bytes of the victim's file, expected fragment)."""
    sound = sound_pictures(1)
    jpeg = encode(object_picture(1), "JPEG")
    ones = mask_picture().point(lambda value: value // 255)
    return [
        ("text_as_png", "object", b"this is not a picture\n", "not a PNG or JPEG picture"),
        ("gif_as_png", "object", encode(object_picture(1), "GIF"), "not a PNG or JPEG picture"),
        ("zero_byte_png", "shadow", b"", "empty (0 bytes)"),
        ("truncated_png", "shadow", sound["shadow"][: len(sound["shadow"]) // 2], "truncated or damaged"),
        ("png_without_end", "mask", sound["mask"][:-12], "truncated or damaged"),
        ("wrong_checksum", "object", wrong_checksum(sound["object"]), "truncated or damaged"),
        ("truncated_jpeg", "object", jpeg[: len(jpeg) // 2], "truncated or damaged"),
        ("animated_png", "object", animated(), "animated"),
        ("bomb_16_gigapixels", "object", bomb(131072, 131072), "decompression bomb"),
        ("bomb_at_warning_level", "shadow", bomb(10000, 10000), "decompression bomb"),
        ("one_pixel", "object", encode(object_picture(1, side=1)), "1 x 1 pixels"),
        ("narrow_picture", "shadow", encode(Image.new("L", (7, 64))), "7 x 64 pixels"),
        ("mask_size_differs", "mask", encode(mask_picture(side=2 * SIDE)), "sizes differ"),
        ("shadow_size_differs", "shadow", encode(shadow_picture(1, side=SIDE + 1)), "sizes differ"),
        ("empty_mask", "mask", encode(Image.new("L", (SIDE, SIDE), 0)), "empty mask"),
        ("mask_of_zeros_and_ones", "mask", encode(ones), "a 0/1 mask"),
        ("full_mask", "mask", encode(Image.new("L", (SIDE, SIDE), 255)), "full mask"),
        ("coloured_mask", "mask", encode(object_picture(7)), "mask is coloured"),
        ("ambiguous_mask", "mask", grey_and_alpha_differ(), "grey values and alpha"),
        ("coloured_shadow", "shadow", encode(object_picture(7)), "shadow is coloured"),
        ("transparent_shadow", "shadow", transparent_shadow(), "transparent"),
        ("shadow_is_object", "shadow", sound["object"], "identical to the object"),
        ("shadow_is_grey_object", "shadow", encode(object_picture(1).convert("L")), "identical to the object"),
        ("shadow_is_mask", "shadow", sound["mask"], "identical to the mask"),
    ]


def bomb(width: int, height: int) -> bytes:
    """A PNG that announces many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def wrong_checksum(png: bytes) -> bytes:
    last = png.index(b"IEND") - 5  # of the pixels' checksum: four bytes of length stand between
    return png[:last] + bytes([png[last] ^ 1]) + png[last + 1 :]


def animated() -> bytes:
    buffer = io.BytesIO()
    object_picture(1).save(buffer, "PNG", save_all=True, append_images=[object_picture(2)])
    return buffer.getvalue()


def grey_and_alpha_differ() -> bytes:
    ramp = np.tile(np.linspace(0, 255, SIDE).astype(np.uint8), (SIDE, 1))
    return encode(Image.merge("LA", [Image.fromarray(ramp), Image.fromarray(np.ascontiguousarray(ramp.T))]))


def transparent_shadow() -> bytes:
    image = shadow_picture(1).convert("LA")
    image.putpixel((3, 3), (0, 0))
    return encode(image)


# --- files and metadata.json as a whole ----------------------------------------------------------------------------

Damage = Callable[[Path, Metadata], None]


def without(name: str) -> Damage:
    def damage(path: Path, metadata: Metadata) -> None:
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return damage


def metadata_bytes(data: bytes) -> Damage:
    def damage(path: Path, metadata: Metadata) -> None:
        (path / "metadata.json").write_bytes(data)

    return damage


def empty(path: Path, metadata: Metadata) -> None:
    for role in ROLES:
        for file in (path / f"{role}s").iterdir():
            file.unlink()
    write_metadata(path, {})


def duplicate_id(path: Path, metadata: Metadata) -> None:
    pairs = [(name, metadata[name]) for name in (*metadata, VICTIM)]
    text = ", ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in pairs)
    (path / "metadata.json").write_text(f"{{{text}}}")


def duplicate_key(path: Path, metadata: Metadata) -> None:
    text = json.dumps(metadata)
    (path / "metadata.json").write_text(text.replace('"phi": 45.0,', '"phi": 45.0, "phi": 46.0,'))


def unsafe_id(path: Path, metadata: Metadata) -> None:
    write_metadata(path, {**metadata, "../img_00009": LIGHT})


def extra_file(path: Path, metadata: Metadata) -> None:
    (path / "shadows/img_00009.png").write_bytes(encode(shadow_picture(9)))


def link_out(path: Path, metadata: Metadata) -> None:
    outside = path.with_name(f"{path.name}_outside.png")
    (path / f"masks/{VICTIM}.png").rename(outside)
    (path / f"masks/{VICTIM}.png").symlink_to(outside)


def folder_link_out(path: Path, metadata: Metadata) -> None:
    outside = path.with_name(f"{path.name}_outside")
    (path / "masks").rename(outside)
    (path / "masks").symlink_to(outside)


def link_to_nothing(path: Path, metadata: Metadata) -> None:
    (path / f"masks/{VICTIM}.png").unlink()
    (path / f"masks/{VICTIM}.png").symlink_to("nowhere.png")


def link_to_itself(path: Path, metadata: Metadata) -> None:
    (path / f"masks/{VICTIM}.png").unlink()
    (path / f"masks/{VICTIM}.png").symlink_to(f"{VICTIM}.png")


def directory(path: Path, metadata: Metadata) -> None:
    (path / f"objects/{VICTIM}.png").unlink()
    (path / f"objects/{VICTIM}.png").mkdir()


def pipe(path: Path, metadata: Metadata) -> None:
    (path / f"objects/{VICTIM}.png").unlink()
    os.mkfifo(path / f"objects/{VICTIM}.png")


def jpeg_mask(path: Path, metadata: Metadata) -> None:
    (path / f"masks/{VICTIM}.png").unlink()
    (path / f"masks/{VICTIM}.jpg").write_bytes(encode(mask_picture(), "JPEG"))


def second_object(path: Path, metadata: Metadata) -> None:
    (path / f"objects/{VICTIM}.jpg").write_bytes(encode(object_picture(1), "JPEG"))


STRUCTURE_FAULTS: list[tuple[str, str, str, Damage]] = [
    ("missing_object", VICTIM, "missing pair", without(f"objects/{VICTIM}.png")),
    ("missing_mask", VICTIM, "missing pair", without(f"masks/{VICTIM}.png")),
    ("missing_shadow", VICTIM, "missing pair", without(f"shadows/{VICTIM}.png")),
    ("missing_shadows_folder", "shadows", "folder shadows/ is missing", without("shadows")),
    ("missing_metadata", "metadata.json", "missing", without("metadata.json")),
    ("metadata_not_json", "metadata.json", "not JSON", metadata_bytes(b'{"img_00000": ')),
    ("metadata_is_list", "metadata.json", "holds a list", metadata_bytes(b"[]")),
    ("metadata_not_utf8", "metadata.json", "not UTF-8", metadata_bytes(b'{"\xff": {}}')),
    ("metadata_nested_deeply", "metadata.json", "not readable as JSON", metadata_bytes(b"[" * 100_000)),
    ("empty_data_set", "metadata.json", "empty data set", empty),
    ("duplicate_id", VICTIM, "duplicate id", duplicate_id),
    ("duplicate_key", VICTIM, "key 'phi' is written twice", duplicate_key),
    ("unsafe_id", "../img_00009", "unsafe id", unsafe_id),
    ("extra_file", "img_00009", "no entry in metadata.json", extra_file),
    ("link_out_of_folder", VICTIM, "points out of the data folder", link_out),
    ("folder_link_out", "masks", "points out of the data folder", folder_link_out),
    ("broken_link", VICTIM, "broken link", link_to_nothing),
    ("link_to_itself", VICTIM, "broken link", link_to_itself),
    ("directory_as_file", VICTIM, "a directory where a file is expected", directory),
    ("pipe_as_file", VICTIM, "not a plain file", pipe),
    ("mask_is_jpeg", VICTIM, "not a .png file", jpeg_mask),
    ("two_object_files", VICTIM, "a second object", second_object),
]


if __name__ == "__main__":
    for case in make_all(Path(sys.argv[1])):
        print(f"{case.path}\t{case.sample}\t{case.expect}")
