"""Archives that go on without a member, or ask for gigabytes of header: said after little is read."""

import struct
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from shadowlab.data.archive import list_members

BLOCK = tarfile.BLOCKSIZE


def header(name: bytes, size: int, kind: bytes) -> bytes:
    """Of a member, as tar has it."""
    octal = b"%011o\0" % size if size < 8**11 else b"\x80" + struct.pack(">3xQ", size)
    fields = [name.ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, octal, b"00000000000\0", b" " * 8, kind]
    block = b"".join(fields).ljust(257, b"\0") + b"ustar\x0000"
    block = block.ljust(BLOCK, b"\0")
    total = sum(block)
    return block[:148] + b"%06o\0 " % total + block[156:]


def grown(path: Path, data: bytes, size: int = 5 * 2**30) -> Path:
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "without a member"),
        (header(b"a.png", 0, b"0"), "more than 64 MiB without a member"),
        (header(b"././@LongLink", 4 * 2**30, b"L"), "a header of 4294967296 bytes"),
        (header(b"pax", 4 * 2**30, b"x"), "a header of 4294967296 bytes"),
        (header(b"pax", 4 * 2**30, b"g"), "a header of 4294967296 bytes"),
        (header(b"a.png", 2**60, b"0"), "damaged tar"),
    ],
    ids=["zeros", "a member and zeros", "a long name", "pax", "global pax", "a member beyond the end"],
)
def test_little_is_read_without_a_member(tmp_path: Path, data: bytes, fault: str) -> None:
    began = time.monotonic()
    *_, (_, source, said) = list_members(grown(tmp_path / "a.tar", data))
    assert source is None and fault in said
    assert time.monotonic() - began < 3


def test_usual_padding_is_no_fault(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(Path(__file__), "a.png")
    whole = (tmp_path / "a.tar").read_bytes()
    for size in (len(whole), len(whole) + 2**22):
        (found,) = list_members(grown(tmp_path / "a.tar", whole, size))
        assert found[0] == "a.png" and found[1] is not None


@pytest.mark.parametrize("target", ["/dev/zero", "."])
def test_what_is_no_file_is_a_fault(tmp_path: Path, target: str) -> None:
    (tmp_path / "a.tar").symlink_to(target)
    ((_, source, fault),) = list_members(tmp_path / "a.tar")
    assert source is None and "not a file" in fault


def test_memory_does_not_grow_with_the_members(tmp_path: Path) -> None:
    """A quarter of a million samples are three times as many members: half a KiB of each was 350 MiB."""
    empty = tarfile.TarInfo("a.png")
    (tmp_path / "a.tar").write_bytes(empty.tobuf() * 3000 + b"\0" * 2 * BLOCK)
    assert all(source is not None for _, source, _ in list_members(tmp_path / "a.tar"))
    tracemalloc.start()
    try:
        held = [tracemalloc.get_traced_memory()[0] for _ in list_members(tmp_path / "a.tar")]
    finally:
        tracemalloc.stop()
    assert len(held) == 3000 and held[-1] - held[10] < 300_000
