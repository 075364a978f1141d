"""Golden samples: pictures and lights that are known, written as a user's files are, and read back by the harness.

They are asymmetric, their channels differ, masks are soft, maps have 8 and 16 bits, some are not square: what is
exchanged, turned, rounded or cut on the way shows.

Legend: H W pixels, S image size.
"""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diagnostics.files import replace
from shadowlab.tasks.shadow import reference

SIDE = 64  # pixels, of the samples as the model sees them: three levels of a UNet need 4 x 4 latents at least
LIGHTS = (
    (0.0, 90.0, 2.0),
    (45.0, 0.0, 8.0),
    (30.0, 360.0, 4.0),
    (12.5, 359.0, 3.0),
    (20.0, 180.0, 5.0),
    (40.0, 270.0, 6.5),
    (5.0, 33.0, 2.5),
    (33.0, 211.0, 7.0),
)
_SHAPES = ((64, 64), (64, 64), (96, 80), (44, 56))  # H, W; the first two are not resized
_DISTANCE = 8.0


@dataclass(frozen=True, eq=False)
class GoldenSample:
    """Levels as its files hold them, (H, W, channels) int64, and the largest level of each."""

    rgb: Tensor
    mask: Tensor
    shadow: Tensor
    mask_most: int
    shadow_most: int
    light: tuple[float, float, float]

    @property
    def is_resized(self) -> bool:
        return self.rgb.shape[:2] != (SIDE, SIDE)

    @cached_property
    def pictures(self) -> dict[str, Tensor]:
        """What the model must be given: object (3, S, S), mask (1, S, S), shadow (1, S, S), light (3,)."""
        rgb = reference.object_picture(self.rgb, 255)
        covered = reference.mask(self.mask, self.mask_most)
        found = reference.model_pictures(rgb, covered, reference.shadow_map(self.shadow, self.shadow_most), SIDE)
        return dict(zip(("object", "mask", "shadow"), found, strict=True)) | {"light": torch.tensor(self.light)}

    def files(self) -> dict[str, bytes]:
        """Role -> PNG."""
        return {
            "object": png(self.rgb, 255),
            "mask": png(self.mask, self.mask_most),
            "shadow": png(self.shadow, self.shadow_most),
        }


def golden_sample(number: int) -> GoldenSample:
    """The sample of a number, 0 .. 7: each of the four kinds of files twice."""
    numbers = torch.Generator().manual_seed(number)
    kind = number % 4
    height, width = _SHAPES[kind]

    def levels(channels: int, most: int) -> Tensor:
        """Blocks of 4 x 4 pixels: they outlive resizing and have edges inside the latent pixels."""
        blocks = torch.randint(0, most + 1, (-(-height // 4), -(-width // 4), channels), generator=numbers)
        return blocks.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)[:height, :width]

    rgb = levels(3, 255)
    rgb[..., 1] //= 2
    rgb[..., 2] //= 4  # the channels have means of their own
    if kind == 1:
        rgb = torch.cat([rgb, levels(1, 255)], dim=2)
    mask_most = 65535 if kind == 3 else 255
    soft = _soft_mask(height, width, mask_most)
    covering = torch.full_like(soft, 200)
    shadow_most = 255 if number % 2 else 65535
    return GoldenSample(
        rgb=rgb,
        mask=torch.cat([covering, soft], dim=2) if kind == 1 else soft,
        shadow=levels(1, shadow_most),
        mask_most=mask_most,
        shadow_most=shadow_most,
        light=LIGHTS[number],
    )


def _soft_mask(height: int, width: int, most: int) -> Tensor:
    """(H, W, 1): a lopsided blob whose rim takes every value, with a thin pole that a nearest resize would lose."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    blob = 1.5 - 4.0 * ((x - 0.4).square() * 1.7 + (y - 0.55).square()).sqrt()
    blob[: height // 2, int(width * 0.7) : int(width * 0.7) + 1] = 1.0
    return (blob.clamp(0, 1) * most).round().long()[..., None]


def png(levels: Tensor, most: int) -> bytes:
    """A PNG of (H, W, 1 grey, 2 grey with alpha, 3 RGB or 4 RGBA) levels."""
    height, width, channels = levels.shape
    form, depth = ("B", 8) if most == 255 else ("H", 16)
    rows = levels.reshape(height, -1).tolist()
    raw = b"".join(b"\0" + struct.pack(f">{len(row)}{form}", *row) for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_folder(samples: Mapping[str, GoldenSample], objects: Mapping[str, str], folder: Path) -> str:
    """As a user's folder: objects/ masks/ shadows/ metadata.json, half of them with the older name of the size."""
    metadata = {}
    for i, (name, sample) in enumerate(samples.items()):
        for role, data in sample.files().items():
            (folder / f"{role}s").mkdir(exist_ok=True)
            replace(folder / f"{role}s" / f"{name}.png", data)
        theta, phi, size = sample.light
        metadata[name] = {"theta": theta, "phi": phi, "size" if i % 2 else "light_size": size, "object": objects[name]}
    replace(folder / "metadata.json", json.dumps(metadata).encode())
    return str(folder)


def write_benchmark(samples: Mapping[str, GoldenSample], folder: Path) -> str:
    """As the benchmark's tar."""
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w") as tar:
        for name, sample in samples.items():
            theta, phi, size = sample.light
            metadata = {"light_energy": 1000, "phi": phi, "r": _DISTANCE, "size": size, "theta": theta}
            members = {"image" if role == "object" else role: data for role, data in sample.files().items()}
            named = {f"{role}.png": data for role, data in members.items()}
            for ending, data in (named | {"metadata.json": json.dumps(metadata).encode()}).items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    replace(folder / "benchmark.tar", buffer.getvalue())
    return str(folder / "benchmark.tar")
