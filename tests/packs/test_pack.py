"""A pack is the data set it was made from: the same entries, bytes and fingerprint, in tars that others read."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import UserError
from shadowlab.packs import pack as packing
from shadowlab.packs.pack import PackReport, pack_dataset
from shadowlab.tasks.shadow.dataset import index_dataset, open_dataset
from shadowlab.tasks.shadow.light import RANGES
from tests.latents.filled import content
from tests.tasks.shadow.sound import make_folder

NUM_SAMPLES = 7
THREE_SHARDS = 0.012  # MiB


def pack(source: Path | str, out: Path, shard_mib: float = THREE_SHARDS) -> PackReport:
    alone = SingleProcess(torch.device("cpu"))
    quiet = Reporter(active=False)
    return pack_dataset(index_dataset(source), out, alone, quiet, value_names=tuple(RANGES), shard_mib=shard_mib)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ids with dots and other letters among them. Do not write into it."""
    root = tmp_path_factory.mktemp("data") / "source"
    make_folder(root, NUM_SAMPLES)
    metadata = json.loads((root / "metadata.json").read_text())
    for old, new in (("img_00001", "a.b 100%"), ("img_00002", "ähnlich"), ("img_00003", "x" * 150)):
        metadata[new] = metadata.pop(old)
        for path in root.glob(f"*/{old}.*"):
            path.rename(path.with_name(new + path.suffix))
    (root / "metadata.json").write_text(json.dumps(metadata))
    return root


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several shards. Do not write into it."""
    out = tmp_path_factory.mktemp("packed") / "pack"
    report = pack(folder, out)
    assert report.num_samples == NUM_SAMPLES and report.num_packed == report.num_shards >= 3
    return out


def test_samples_entries_and_fingerprint_are_those_of_the_folder(folder: Path, packed: Path) -> None:
    before, after = open_dataset(folder, 32), open_dataset(packed, 32)
    assert after.fingerprint() == before.fingerprint()
    assert list(after.ids) == list(before.ids) and list(after.object_ids) == list(before.object_ids)
    assert after.notices == before.notices
    for i in range(NUM_SAMPLES):
        mine, its = before[i], after[i]
        for name in ("object_image", "mask", "shadow", "light"):
            assert torch.equal(getattr(mine, name), getattr(its, name))
    assert str(packed) in str(after.entry(0).sources["mask"].path)


def test_members_are_grouped_by_keys_without_a_dot(folder: Path, packed: Path) -> None:
    """What webdataset takes for a sample: what stands before the first dot of neighbouring names."""
    index, seen = index_dataset(folder), []
    for tar in sorted(packed.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                key, _, ending = member.name.partition(".")
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
                read = archive.extractfile(member)
                assert read is not None
                if ending == "json":
                    seen.append((key, json.load(read)))
                else:
                    entry = next(entry for entry in index.entries if entry.id == seen[-1][1]["id"])
                    assert key == seen[-1][0]
                    assert read.read() == entry.sources[ending.partition(".")[0]].read()
    assert len({key for key, _ in seen}) == len(seen) == NUM_SAMPLES
    metadata = json.loads((folder / "metadata.json").read_text())
    for _, said in seen:
        assert {name: said[name] for name in RANGES} == {name: metadata[said["id"]][name] for name in RANGES}


def test_the_same_data_give_the_same_bytes(folder: Path, packed: Path, tmp_path: Path) -> None:
    pack(shutil.copytree(folder, tmp_path / "source"), tmp_path / "pack")
    assert content(tmp_path / "pack") == content(packed)


def test_what_was_packed_before_an_interruption_is_kept(
    folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original, seen = tmp_path / "pack", packing._add, []

    def interrupted(tar: Any, name: str, data: bytes) -> int:
        seen.append(name)
        if len(seen) == 4 * (NUM_SAMPLES - 1):
            raise KeyboardInterrupt
        return original(tar, name, data)

    monkeypatch.setattr(packing, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, out)
    assert not list(out.glob(".*"))
    with pytest.raises(UserError, match=r"pack\.json: missing: the packing did not come to its end; go on with"):
        open_dataset(out, 32)
    monkeypatch.undo()
    for name in ("shard-000001.tar", "shard-000001.jsonl", "pack.json"):
        (out / f".{name}.4242.tmp").write_bytes(b"of a process that was killed")
    report = pack(folder, out)
    assert report.num_kept >= 1 and report.num_packed >= 1
    assert content(out) == content(packed)


def test_a_damaged_shard_and_one_of_newer_pictures_are_packed_again(folder: Path, tmp_path: Path) -> None:
    source, out = Path(shutil.copytree(folder, tmp_path / "source")), tmp_path / "pack"
    pack(source, out)
    tar = out / "shard-000001.tar"
    raw, before = bytearray(tar.read_bytes()), tar.stat()
    raw[2000] ^= 1
    tar.write_bytes(raw)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pack(source, out).num_packed == 1
    victim = next((source / "masks").iterdir())
    os.utime(victim, ns=(before.st_atime_ns, tar.stat().st_mtime_ns + 10**9))  # as an edit of the same size
    assert pack(source, out).num_packed == 1


def test_a_pack_is_packed_anew(packed: Path, folder: Path, tmp_path: Path) -> None:
    pack(packed, tmp_path / "again", shard_mib=1)
    assert open_dataset(tmp_path / "again", 32).fingerprint() == open_dataset(folder, 32).fingerprint()


@pytest.mark.parametrize("name", ["notes.txt", "shard-000099.tar"])
def test_a_folder_with_something_else_in_it_is_left_alone(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is no part of this pack; choose another --out"):
        pack(folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_faulty_data_are_not_packed(folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "source"))
    next((source / "masks").iterdir()).unlink()
    with pytest.raises(UserError, match=r"missing pair: no masks/.*; for all run: shadowlab data check"):
        pack(source, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def edited(line: int, **changes: Any) -> Any:
    """A change of one line of the first shard, and of the digest that vouches for it."""

    def edit(root: Path) -> None:
        path = root / "shard-000000.jsonl"
        lines = path.read_text().splitlines()
        lines[line] = json.dumps({**json.loads(lines[line]), **changes})
        path.write_text("\n".join(lines) + "\n")
        whole = json.loads((root / "pack.json").read_text())
        whole["shards"][0]["lines_sha256"] = packing.sha256_of(path)
        (root / "pack.json").write_text(json.dumps(whole))

    return edit


def cut_tar(root: Path) -> None:
    os.truncate(root / "shard-000000.tar", 5000)


def tar_elsewhere(root: Path) -> None:
    tar = root / "shard-000000.tar"
    shutil.move(tar, root.parent / "elsewhere.tar")
    tar.symlink_to(root.parent / "elsewhere.tar")


def pipe(root: Path) -> None:
    (root / "shard-000000.tar").unlink()
    os.mkfifo(root / "shard-000000.tar")


def flipped(root: Path) -> None:
    path = root / "shard-000000.jsonl"
    path.write_text(path.read_text().replace('"track"', '"trick"'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_tar, "shard-000000.tar has 5,000 bytes, not"),
        (tar_elsewhere, "shard-000000.tar: "),
        (pipe, "shard-000000.tar: "),
        (flipped, "shard-000000.jsonl is damaged"),
        (lambda root: (root / "shard-000000.jsonl").unlink(), "shard-000000.jsonl: "),
        (lambda root: (root / "pack.json").write_text("[" * 9999), "pack.json: nested deeper"),
        (lambda root: (root / "pack.json").write_text('{"format": 2}'), "not a pack of format 1"),
        (edited(1, values=[1.0, 2.0]), "its numbers are not theta, phi and size"),
        (edited(1, values=[1.0, 2.0, float("nan")]), "values are not numbers"),
        (edited(1, values=[10**400, 2.0, 4.0]), "values are not numbers"),
        (edited(1, values=[99.0, 2.0, 4.0]), "theta = 99"),
        (edited(1, pictures={"mask": ["m.png", 0, 10**9]}), "ends behind the end of shard-000000.tar"),
        (edited(1, pictures={"mask": ["m.png", -5, 10]}), "-5 is no count"),
        (edited(1, pictures={}), "no object picture"),
        (edited(1, id="zzz"), "ids are sorted"),
        (edited(0, name="../shard-000000"), "is no shard's name"),
    ],
)
def test_a_damaged_or_hostile_pack_is_one_line(packed: Path, tmp_path: Path, damage: Any, words: str) -> None:
    root = Path(shutil.copytree(packed, tmp_path / "pack"))
    damage(root)
    with pytest.raises(UserError) as caught:
        open_dataset(root, 32)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert index_dataset(root).problems


def test_offsets_are_those_of_the_tar(packed: Path) -> None:
    for tar in packed.glob("*.tar"):
        raw = tar.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            places = {(member.offset_data, member.size) for member in archive if not member.name.endswith(".json")}
        lines = tar.with_suffix(".jsonl").read_text().splitlines()[1:]
        listed = {tuple(place[1:]) for line in lines for place in json.loads(line)["pictures"].values()}
        assert listed == places
