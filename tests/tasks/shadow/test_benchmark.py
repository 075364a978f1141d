"""The benchmark layout: tars of a few keys of each track, with the lights of the paper's table."""

import io
import json
import math
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from shadowlab.data.archive import list_members
from shadowlab.data.decoding import read_shadow
from shadowlab.tasks.shadow.benchmark import BenchmarkDataset, index_benchmark
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.samples import Sample, collate
from tests.tasks.shadow.sound import add_member, benchmark_sample, make_tar


def location(theta: float, phi: float, r: float = 8.0) -> str:
    t, p = math.radians(theta), math.radians(phi)
    return f"{r * math.sin(t) * math.cos(p)},{r * math.sin(t) * math.sin(p)},{r * math.cos(t)}"


def softness() -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for i in range(6):
        members |= benchmark_sample(f"softness_control_{i:03d}", seed=i, size=(2, 4, 8)[i % 3])
    return members


def directions() -> dict[str, bytes]:
    """The other two tracks, in the second variant of the metadata: no light_energy, floats."""
    members: dict[str, bytes] = {}
    for i in (0, 1, 17, 18):
        phi = 20.0 * (i % 18)
        changes = {"theta": 35.0, "phi": phi, "light_location": location(35, phi), "size": 2.0, "light_energy": None}
        key = f"horizontal_direction_control_{i:03d}"
        members |= benchmark_sample(key, seed=100 + i, track="horizontal_direction_control", **changes)
    for i in (0, 8, 9):
        theta = 5 + 5 * (i % 9)
        changes = {"theta": theta, "phi": 0, "light_location": location(theta, 0), "light_energy": None}
        key = f"vertical_direction_control_{i:03d}"
        members |= benchmark_sample(key, seed=200 + i, track="vertical_direction_control", **changes)
    return members


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return make_tar(tmp_path / "benchmark.tar", softness() | directions())


def test_objects_are_distinguished_by_number_within_their_track(tar: Path) -> None:
    dataset = open_dataset(tar, 32)
    assert dict(zip(dataset.ids, dataset.object_ids, strict=True)) == {
        **{f"softness_control_{i:03d}": f"softness_control/object_{i // 3:03d}" for i in range(6)},
        "horizontal_direction_control_000": "horizontal_direction_control/object_000",
        "horizontal_direction_control_001": "horizontal_direction_control/object_000",
        "horizontal_direction_control_017": "horizontal_direction_control/object_000",
        "horizontal_direction_control_018": "horizontal_direction_control/object_001",
        "vertical_direction_control_000": "vertical_direction_control/object_000",
        "vertical_direction_control_008": "vertical_direction_control/object_000",
        "vertical_direction_control_009": "vertical_direction_control/object_001",
    }


def test_light_is_theta_phi_size_and_never_r(tar: Path) -> None:
    dataset = open_dataset(tar, 32)
    lights = {sample.id: sample.light.tolist() for sample in (dataset[i] for i in range(len(dataset)))}
    assert lights["softness_control_000"] == [30.0, 0.0, 2.0]
    assert lights["softness_control_001"] == [30.0, 0.0, 4.0]
    assert lights["horizontal_direction_control_017"] == [35.0, 340.0, 2.0]
    assert lights["vertical_direction_control_008"] == [45.0, 0.0, 2.0]


def test_pictures_are_those_of_the_members(tar: Path) -> None:
    dataset = open_dataset(tar, 32)
    members = softness() | directions()
    for i, key in enumerate(dataset.ids):
        sample = dataset[i]
        assert sample.track == key.rsplit("_", 1)[0]
        assert torch.equal(sample.shadow, read_shadow(members[f"{key}.shadow.png"], key))
        assert not sample.object_image[:, sample.mask[0] == 0].any()


def test_notices_warn_of_training_on_it(tar: Path) -> None:
    dataset = BenchmarkDataset(tar, 32)
    assert dataset.notices[0] == dataset.notice
    assert "CC-BY-NC-4.0" in dataset.notice
    assert "13 of the benchmark's 555 samples" in dataset.notices[1]


def test_folder_of_tars_reads_as_one_set(tar: Path, tmp_path: Path) -> None:
    make_tar(tmp_path / "parts/0.tar", softness())
    make_tar(tmp_path / "parts/1.tar", directions())
    parts, whole = open_dataset(tmp_path / "parts", 32), open_dataset(tar, 32)
    assert parts.ids == whole.ids
    assert parts.fingerprint() == whole.fingerprint()
    assert torch.equal(parts[7].object_image, whole[7].object_image)


def test_a_sample_may_span_two_tars(tmp_path: Path) -> None:
    members = list(softness().items())
    make_tar(tmp_path / "parts/0.tar", dict(members[:6]))
    make_tar(tmp_path / "parts/1.tar", dict(members[6:]))
    assert len(open_dataset(tmp_path / "parts", 32)) == 6


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_dialect_is_read_with_directories_and_dotted_names(tmp_path: Path, kind: int) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as archive:
        directory = tarfile.TarInfo("./")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, data in softness().items():
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime = len(data), 1.5 if kind == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(data))
        add_member(archive, "./._softness_control_000.image.png", b"resource fork")
    assert [problem.message for problem in index_benchmark(tmp_path / "x.tar").problems] == []
    assert len(open_dataset(tmp_path / "x.tar", 32)) == 6


def test_members_are_read_in_place_by_offset(tar: Path) -> None:
    members = softness() | directions()
    for name, source, fault in list_members(tar):
        assert not fault
        assert source is not None
        assert source.read() == members[name]


def test_forked_workers_read_the_same_samples(tar: Path) -> None:
    dataset = open_dataset(tar, 32)
    dataset[0]  # a handle kept open here would share its position with the workers
    loader: DataLoader[Sample] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=2,
        num_workers=2,
        collate_fn=collate,
        multiprocessing_context="fork",
    )
    shadows = torch.cat([batch.shadow for batch in loader])
    assert torch.equal(shadows, torch.stack([dataset[i].shadow for i in range(len(dataset))]))


def test_dataset_travels_to_spawned_workers(tar: Path) -> None:
    dataset = open_dataset(tar, 32)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3].object_image, dataset[3].object_image)


def test_reading_leaves_no_file_open_and_writes_nothing(tar: Path) -> None:
    dataset = open_dataset(tar, 32)
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for i in range(len(dataset)):
        dataset[i]
    assert (len(os.listdir("/proc/self/fd")) if descriptors else 0) == descriptors
    assert [path.name for path in tar.parent.iterdir()] == ["benchmark.tar"]


def test_location_check_allows_rounding_but_no_other_convention(tmp_path: Path) -> None:
    def problems(**changes: object) -> list[str]:
        path = make_tar(tmp_path / "x.tar", benchmark_sample("softness_control_000", 0, **changes))
        return [problem.message for problem in index_benchmark(path).problems]

    assert problems(light_location="4.0,0.0,6.93") == []
    assert problems(light_location="4.0,-0.0,6.93", phi=360) == []
    assert problems(light_location="2.0,0.0,3.4641", r=4) == []
    assert problems(light_location=None) == []
    assert problems(light_location=None, r=None) == []
    assert len(problems(phi=180)) == 1
    assert len(problems(light_location="6.9282,0.0,4.0")) == 1  # theta measured from the ground
    assert len(problems(light_location="nan,0,0")) == 1
    assert len(problems(light_location=[4.0, 0.0, 6.9282])) == 1


def test_metadata_variants(tmp_path: Path) -> None:
    """With and without light_energy, ints and floats, as the two variants of the published files."""
    members = benchmark_sample("softness_control_000", 0, light_energy=None, theta=30.0, phi=0.0, size=2.0, r=8.0)
    members |= benchmark_sample("softness_control_001", 1, size=4)
    assert "light_energy" not in json.loads(members["softness_control_000.metadata.json"])
    assert len(open_dataset(make_tar(tmp_path / "x.tar", members), 32)) == 2
