"""The index of a large data set is kept, and used only while it holds."""

import importlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

import shadowlab.tasks.shadow.benchmark as benchmark_module
import shadowlab.tasks.shadow.folder as folder_module
from shadowlab.data import Index
from shadowlab.tasks.shadow.dataset import index_dataset, open_dataset
from tests.tasks.shadow.sound import encode, make_folder, make_tar, shadow_picture, softness_members, write_metadata

column_files = importlib.import_module("shadowlab.data.column_files")
kept_index = importlib.import_module("shadowlab.data.kept_index")
Look = Callable[[Path], tuple[Index, bool]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of indexes, of a user whose sets of any size, made this moment, are worth keeping."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_index, "_WORTH", 1)
    monkeypatch.setattr(kept_index, "_RACY_SECONDS", -60.0)
    return tmp_path / "cache" / "shadowlab" / "indexes"


@pytest.fixture
def look(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """The index of a data set, and whether it was read from the data set itself."""
    built = []
    for module, name in ((folder_module, "index_folder"), (benchmark_module, "index_benchmark")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, original=original: built.append(path) or original(path))

    def looked(path: Path) -> tuple[Index, bool]:
        built.clear()
        return index_dataset(path), bool(built)

    return looked


def same(one: Index, other: Index) -> bool:
    return list(one.entries) == list(other.entries) and one.notices == other.notices


@pytest.fixture(params=["folder", "tar", "tars"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        make_folder(tmp_path / "set", 5)
        return tmp_path / "set"
    members = softness_members(6)
    if request.param == "tar":
        return make_tar(tmp_path / "x.tar", members)
    half = len(members) // 2
    for number, names in enumerate((list(members)[:half], list(members)[half:])):
        make_tar(tmp_path / "set" / f"{number}.tar", {name: members[name] for name in names})
    return tmp_path / "set"


def test_the_second_opening_reads_the_kept_index_and_finds_the_same(data: Path, look: Look, cache: Path) -> None:
    first, built = look(data)
    assert built and [stat.S_IMODE(path.stat().st_mode) for path in (cache.parent, cache)] == [0o700, 0o700]
    second, built_again = look(data)
    assert not built_again and same(first, second) and second.remarks == []
    assert second.fingerprint() == first.fingerprint() == Index(first.entries).fingerprint()
    one, other = open_dataset(data, 32)[1], open_dataset(data, 32)[1]
    assert np.array_equal(one.shadow, other.shadow)


def test_the_kept_index_serves_a_set_by_any_path_to_it(data: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    look(data)
    monkeypatch.chdir(data.parent)
    index, built = look(Path(data.name))
    assert not built and all(not source.path.is_absolute() for source in index.entries[0].sources.values())
    assert all(source.read() for entry in index.entries for source in entry.sources.values())


def add_a_sample(path: Path) -> None:
    for role in ("object", "mask", "shadow"):
        os.link(path / f"{role}s/img_00000.png", path / f"{role}s/img_00009.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": add_a_sample,
    "removed": lambda path: (path / "masks/img_00001.png").unlink(),
    "renamed": lambda path: (path / "masks/img_00001.png").rename(path / "masks/img_00008.png"),
    "exchanged": lambda path: (path / "shadows/img_00001.png").replace(path / "shadows/img_00002.png"),
    "folder gone": lambda path: (path / "masks").rename(path.parent / "masks"),
    "metadata": lambda path: write_metadata(path, {}),
    "overwritten in place": lambda path: (path / "shadows/img_00001.png").write_bytes(encode(shadow_picture(77))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_read_again(tmp_path: Path, look: Look, change: str) -> None:
    make_folder(tmp_path / "set", 5)
    look(tmp_path / "set")
    CHANGES[change](tmp_path / "set")
    index, built = look(tmp_path / "set")
    assert built and same(index, folder_module.index_folder(tmp_path / "set"))


def test_edited_metadata_of_the_same_length_and_time_are_read_again(tmp_path: Path, look: Look) -> None:
    metadata = make_folder(tmp_path / "set", 5)
    look(tmp_path / "set")
    file = tmp_path / "set" / "metadata.json"
    before = file.stat()
    write_metadata(tmp_path / "set", {**metadata, "img_00000": {**metadata["img_00000"], "theta": 16.0}})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    index, built = look(tmp_path / "set")
    assert built and index.entries[0].values == (16.0, 0.0, 4.0)


def test_another_or_a_changed_tar_is_read_again(tmp_path: Path, look: Look) -> None:
    folder = tmp_path / "set"
    make_tar(folder / "0.tar", softness_members(3))
    look(folder)
    make_tar(folder / "1.tar", {"softness_control_003" + name[20:]: b for name, b in softness_members(1).items()})
    index, built = look(folder)
    assert built and len(index.entries) == 4
    make_tar(folder / "0.tar", softness_members(2))
    index, built = look(folder)
    assert built and len(index.entries) == 3


def test_pictures_overwritten_in_place_are_noticed_where_they_are_many(
    tmp_path: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_index, "_NUM_PROBES", 10)  # of 60 pictures: every sixth of each folder
    make_folder(tmp_path / "set", 20)
    assert [look(tmp_path / "set")[1] for _ in range(2)] == [True, False]
    for i in range(7, 13):
        (tmp_path / f"set/shadows/img_{i:05d}.png").write_bytes(encode(shadow_picture(77 + i).resize((31, 32))))
    assert look(tmp_path / "set")[1]


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped", "other", "not columns", "forged"])
def test_a_damaged_cache_is_said_once_and_made_again(tmp_path: Path, look: Look, cache: Path, kind: str) -> None:
    make_folder(tmp_path / "set", 5)
    first, _ = look(tmp_path / "set")
    [file] = cache.iterdir()
    content = file.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    arrays = load(content)
    codes = {**arrays, "object_of": arrays["object_of"] + 99}
    codes["sha256"] = column_files._digest({name: one for name, one in codes.items() if name != "sha256"})
    damaged = {"cut": content[:-9], "empty": b"", "flipped": flipped, "other": save({"x": np.zeros(3)})}
    damaged |= {"not columns": b"\x80\x04cos\nsystem\n", "forged": save(codes)}
    file.write_bytes(damaged[kind])
    index, built = look(tmp_path / "set")
    assert built and same(index, first)
    [remark] = index.remarks
    assert remark.startswith(str(file)) and "damaged" in remark and "\n" not in remark
    index, built = look(tmp_path / "set")
    assert not built and not index.remarks and file.read_bytes() == content
    file.write_bytes(damaged[kind])
    assert open_dataset(tmp_path / "set", 32).notices == [remark] != open_dataset(tmp_path / "set", 32).notices


@pytest.mark.parametrize("what", ["file", "folder", "linked", "pipe"])
def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path, look: Look, cache: Path, what: str) -> None:
    make_folder(tmp_path / "set", 5)
    first, _ = look(tmp_path / "set")
    [file] = cache.iterdir()
    if what == "file":
        file.chmod(0o666)
    elif what == "folder":
        cache.chmod(0o777)
    elif what == "linked":
        file.rename(tmp_path / "mine")
        file.symlink_to(tmp_path / "mine")
    else:
        file.unlink()
        os.mkfifo(file, 0o600)
    index, built = look(tmp_path / "set")
    assert built and same(index, first)
    [remark] = index.remarks
    assert "is not used" in remark


def test_a_cache_of_another_user_is_not_used(
    tmp_path: Path, look: Look, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "set", 5)
    look(tmp_path / "set")
    kept = {path: path.read_bytes() for path in cache.iterdir()}
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for _ in range(2):
        index, built = look(tmp_path / "set")
        assert built and "belongs to another user" in index.remarks[0]
    assert {path: path.read_bytes() for path in cache.iterdir()} == kept  # nor is it written to


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null/x"])
def test_a_cache_that_cannot_be_written_has_no_effect(
    tmp_path: Path, look: Look, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    make_folder(tmp_path / "set", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    for _ in range(2):
        index, built = look(tmp_path / "set")
        assert built and len(index.entries) == 5 and not index.remarks


def test_without_a_home_there_is_no_cache(tmp_path: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "set", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    index, built = look(tmp_path / "set")
    assert built and not index.remarks and not (tmp_path / "relative").exists() and not Path("relative").exists()


def test_what_is_small_young_or_faulty_is_not_kept(
    tmp_path: Path, look: Look, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "set", 5)
    monkeypatch.setattr(kept_index, "_WORTH", 16)  # it has 15 pictures
    look(tmp_path / "set")
    assert not cache.exists()
    monkeypatch.setattr(kept_index, "_WORTH", 15)
    monkeypatch.setattr(kept_index, "_RACY_SECONDS", 60.0)  # it may still be written to
    look(tmp_path / "set")
    assert not cache.exists()
    monkeypatch.setattr(kept_index, "_RACY_SECONDS", -60.0)
    (tmp_path / "set/masks/stray.png").write_bytes(b"")
    look(tmp_path / "set")
    assert not cache.exists()
    (tmp_path / "set/masks/stray.png").unlink()
    look(tmp_path / "set")
    assert len(list(cache.iterdir())) == 1


def test_the_cache_does_not_grow_without_end(
    tmp_path: Path, look: Look, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_index, "_MOST_FILES", 2)
    for number in range(3):
        make_folder(tmp_path / str(number), 3)
        look(tmp_path / str(number))
        if number == 1:
            os.utime(kept_index._place(tmp_path / "1", folder_module.LAYOUT), (0, 0))  # the other was used since
    assert len(list(cache.iterdir())) == 2
    assert [look(tmp_path / str(number))[1] for number in (0, 2, 1)] == [False, False, True]
