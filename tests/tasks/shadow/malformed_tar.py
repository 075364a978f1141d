"""Malformed benchmark tars; see `malformed.py`."""

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.tasks.shadow.malformed import Case, bomb
from tests.tasks.shadow.sound import (
    SIDE,
    add_member,
    benchmark_metadata,
    benchmark_sample,
    encode,
    make_tar,
    softness_members,
)

VICTIM = "softness_control_001"
BLOCK = tarfile.BLOCKSIZE


def make_tar_cases(root: Path) -> list[Case]:
    cases = []
    for name, sample, expect, members in MEMBER_FAULTS:
        make_tar(root / name / "test.tar", members())
        cases.append(Case(name, root / name / "test.tar", sample, expect))
    for name, sample, expect, damage in ARCHIVE_FAULTS:
        path = make_tar(root / name / "test.tar", softness_members())
        damage(path)
        cases.append(Case(name, path, sample, expect))
    path = root / "tar_sample_in_two_files"
    make_tar(path / "a.tar", softness_members(2))
    make_tar(path / "b.tar", softness_members(1))
    cases.append(Case(path.name, path, "softness_control_000", "duplicate member"))
    return cases


# --- sound archives of unsound members -----------------------------------------------------------------------------

Members = Callable[[], dict[str, bytes]]


def changed(suffix: str, data: bytes) -> Members:
    return lambda: {**softness_members(), f"{VICTIM}.{suffix}": data}


def metadata(**changes: object) -> Members:
    return changed("metadata.json", json.dumps(benchmark_metadata(**changes)).encode())


def without(suffix: str) -> Members:
    return lambda: {name: data for name, data in softness_members().items() if name != f"{VICTIM}.{suffix}"}


def with_member(name: str, data: bytes = b"x") -> Members:
    return lambda: {**softness_members(), name: data}


def with_key(key: str, **changes: object) -> Members:
    return lambda: {**softness_members(), **benchmark_sample(key, seed=9, **changes)}


MEMBER_FAULTS: list[tuple[str, str, str, Members]] = [
    ("tar_missing_shadow", VICTIM, "missing member", without("shadow.png")),
    ("tar_missing_metadata", VICTIM, "missing member", without("metadata.json")),
    ("tar_member_above", "../x", "unsafe member name", with_member("../x")),
    ("tar_member_absolute", "/tmp/x.image.png", "unsafe member name", with_member("/tmp/x.image.png")),
    ("tar_member_backslash", "..\\x.mask.png", "unsafe member name", with_member("..\\x.mask.png")),
    ("tar_member_of_no_kind", VICTIM, "unknown member", with_member(f"{VICTIM}.depth.png")),
    ("tar_unknown_track", "elevation_control_000", "unknown track", with_key("elevation_control_000", track=None)),
    ("tar_key_without_number", "softness_control", "key without a number", with_key("softness_control")),
    ("tar_track_differs", VICTIM, "but the key says", metadata(track="vertical_direction_control")),
    ("tar_wrong_location", VICTIM, "light_location is 0,4,6.9", metadata(light_location="0,4,6.9")),
    ("tar_location_of_two", VICTIM, "write x,y,z", metadata(light_location="4.0,0.0")),
    ("tar_location_without_r", VICTIM, "key 'r' is missing", metadata(r=None)),
    ("tar_size_missing_beside_r", VICTIM, "key 'size' is missing", metadata(size=None)),
    ("tar_theta_out_of_range", VICTIM, "theta = 50", metadata(theta=50, light_location=None)),
    ("tar_unknown_key", VICTIM, "the nearest valid key is 'light_energy'", metadata(light_enrgy=5)),
    ("tar_metadata_not_json", VICTIM, "not JSON", changed("metadata.json", b"theta: 30")),
    ("tar_metadata_is_list", VICTIM, "holds a list", changed("metadata.json", b"[30, 0, 2]")),
    ("tar_zero_byte_png", VICTIM, "empty (0 bytes)", changed("shadow.png", b"")),
    ("tar_bomb", VICTIM, "decompression bomb", changed("image.png", bomb(131072, 131072))),
    ("tar_full_mask", VICTIM, "full mask", changed("mask.png", encode(Image.new("L", (SIDE, SIDE), 255)))),
    ("tar_empty", "test.tar", "empty data set", dict),
]

# --- unsound archives ----------------------------------------------------------------------------------------------


def members_end(path: Path) -> int:
    """Offset of the end-of-archive mark."""
    with tarfile.open(path) as archive:
        archive.getmembers()
        return archive.offset - BLOCK  # the reader stands behind the first zero block


def cut_in_data(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: members_end(path) - BLOCK - 100])


def cut_between_members(path: Path) -> None:
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:last])


def damage_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        header = archive.getmember(f"{VICTIM}.image.png").offset
    data[header : header + 8] = b"\xff" * 8
    path.write_bytes(data)


def negative_size(path: Path) -> None:
    """A size that would make a reader go round in a circle."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        header = archive.getmember(f"{VICTIM}.image.png").offset
    data[header + 124 : header + 136] = b"\xff" * 11 + b"\x00"
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + BLOCK])
    path.write_bytes(data)


def mask_of_type(kind: bytes, target: str = "") -> Callable[[Path], None]:
    """The victim's mask is no plain file."""

    def damage(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for name, data in softness_members().items():
                if name != f"{VICTIM}.mask.png":
                    add_member(archive, name, data)
                    continue
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                archive.addfile(info)

    return damage


def duplicate(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        add_member(archive, f"{VICTIM}.mask.png", b"x")


def joined(path: Path) -> None:
    """What `cat a.tar b.tar` makes: readers stop at the first end."""
    data = path.read_bytes()
    path.write_bytes(data + data)


def contents(data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(data)

    return damage


def compress(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


ARCHIVE_FAULTS: list[tuple[str, str, str, Callable[[Path], None]]] = [
    ("tar_cut_in_data", "softness_control_002", "truncated", cut_in_data),
    ("tar_cut_between_members", "softness_control_002", "truncated", cut_between_members),
    ("tar_damaged_header", "softness_control_000", "the next header is unreadable", damage_header),
    ("tar_negative_size", "softness_control_000", "damaged", negative_size),
    ("tar_link", VICTIM, "a link to /etc/hostname", mask_of_type(tarfile.SYMTYPE, "/etc/hostname")),
    ("tar_hard_link", VICTIM, "a link to", mask_of_type(tarfile.LNKTYPE, "softness_control_000.mask.png")),
    ("tar_device", VICTIM, "a device", mask_of_type(tarfile.CHRTYPE)),
    ("tar_pipe", VICTIM, "a device", mask_of_type(tarfile.FIFOTYPE)),
    ("tar_duplicate_member", VICTIM, "duplicate member", duplicate),
    ("tar_joined_by_cat", "softness_control_002", "behind the end-of-archive mark", joined),
    ("tar_compressed", "test.tar", "not a plain one", compress),
    ("tar_is_text", "test.tar", "not a plain one", contents(b"not a tar\n" * 100)),
    ("tar_zero_bytes", "test.tar", "truncated", contents(b"")),
]
