"""Small sound data sets of random pictures, in both layouts, for the tests to read and to damage."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32  # pixels
ROLES = ("object", "mask", "shadow")

Metadata = dict[str, dict[str, object]]


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def object_picture(seed: int, side: int = SIDE) -> Image.Image:
    return Image.fromarray(noise(seed, side, side, 3))


def mask_picture(side: int = SIDE) -> Image.Image:
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    return Image.fromarray(mask)


def shadow_picture(seed: int, side: int = SIDE) -> Image.Image:
    return Image.fromarray(noise(seed + 1000, side, side))


def sound_pictures(seed: int) -> dict[str, bytes]:
    """Role to PNG bytes."""
    return {
        "object": encode(object_picture(seed)),
        "mask": encode(mask_picture()),
        "shadow": encode(shadow_picture(seed)),
    }


def make_folder(path: Path, num_samples: int = 3) -> Metadata:
    """A folder of img_00000, img_00001, ...; two samples an object. Returns its metadata."""
    metadata: Metadata = {}
    for role in ROLES:
        (path / f"{role}s").mkdir(parents=True)
    for i in range(num_samples):
        for role, data in sound_pictures(i).items():
            (path / f"{role}s" / f"img_{i:05d}.png").write_bytes(data)
        metadata[f"img_{i:05d}"] = {"theta": 15.0, "phi": 45.0 * (i % 9), "size": 4.0, "object": f"obj_{i // 2:04d}"}
    write_metadata(path, metadata)
    return metadata


def write_metadata(path: Path, metadata: object) -> None:
    (path / "metadata.json").write_text(json.dumps(metadata))


def benchmark_metadata(**changes: object) -> dict[str, object]:
    """The metadata of one benchmark image; a change to None takes the key out."""
    metadata: dict[str, object] = {
        "light_energy": 1000,
        "light_location": "4.0,0.0,6.928203105926514",
        "phi": 0,
        "r": 8,
        "resolution_x": 1024,
        "resolution_y": 1024,
        "samples": 512,
        "size": 2,
        "theta": 30,
        "track": "softness_control",
    }
    return {key: value for key, value in {**metadata, **changes}.items() if value is not None}


def benchmark_sample(key: str, seed: int, **changes: object) -> dict[str, bytes]:
    """Member name to bytes for one key."""
    pictures = sound_pictures(seed)
    return {
        f"{key}.image.png": pictures["object"],
        f"{key}.mask.png": pictures["mask"],
        f"{key}.metadata.json": json.dumps(benchmark_metadata(**changes)).encode(),
        f"{key}.shadow.png": pictures["shadow"],
    }


def softness_members(num_samples: int = 3) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for i in range(num_samples):
        members |= benchmark_sample(f"softness_control_{i:03d}", seed=i, size=(2, 4, 8)[i % 3])
    return members


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            add_member(archive, name, data)
    return path
