"""The latent cache on disk.

    DIR/index.json               the recipe, and of each picture its size, modification time and SHA-256
    DIR/3f/3f62...e1.safetensors one tensor, (C, h, w) float32, named by its part; the file's name is its key

A key is the digest of the recipe, of the part with its variant, and of the pictures' bytes. What was made from other
pictures, with another VAE, at another size or in another dtype has another key: it is not found, so it cannot be used.
Samples that show the same object share its latent. The latents of mirrored pictures (`data.augment.flip`) are encoded
from these, never mirrored themselves: the mirror image of a latent is not the latent of the mirror image.

Legend: C channels, h w latents (an eighth of the pictures' side).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diagnostics.files import read_json, reason_of, replace, require_file
from shadowlab.data import Source
from shadowlab.errors import UserError
from shadowlab.tasks import Task

ENCODING_VERSION = 1  # one more whenever decoding, compositing, resizing or encoding comes to give other numbers
INDEX_NAME = "index.json"
_INDEX_BYTES = 2**31  # a line a picture


@dataclass(frozen=True)
class Recipe:
    """What decides a latent other than its pictures."""

    task: str
    image_size: int
    vae: str
    """`ImageVae.encoder_digest`."""
    dtype: str
    """That the VAE computes in: float32, whatever the run's precision."""
    version: int = ENCODING_VERSION

    @classmethod
    def of(cls, task: Task[Any], image_size: int) -> Self:
        vae = task.vae
        return cls(task.name, image_size, vae.encoder_digest(), str(vae.autoencoder.dtype).removeprefix("torch."))

    def key(self, part: str, digests: Sequence[str]) -> str:
        """Name of the latent of pictures with these SHA-256, in the order of the part's roles."""
        return hashlib.sha256(json.dumps([vars(self), part, *digests], sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Recipe") -> list[str]:
        """`vae 1a2b3c4d5e6f, not 0a1b2c3d4e5f` of every field in which `other` is not the same."""
        mine, its = asdict(self), asdict(other)
        return [f"{name} {str(mine[name])[:12]}, not {str(its[name])[:12]}" for name in mine if mine[name] != its[name]]


@dataclass(frozen=True)
class PictureFile:
    """A picture's bytes: their SHA-256, and what shows a change without reading them."""

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, source: Source) -> Self:
        """Raises UserError naming the file if it cannot be read."""
        mtime_ns = modification_time(source)  # before the bytes: a change in between is seen at the next look
        data = source.read()
        return cls(len(data), mtime_ns, hashlib.sha256(data).hexdigest())

    def looks_like(self, source: Source) -> bool:
        """Whether size and modification time are still those of `source`."""
        return (self.size, self.mtime_ns) == (source.size, modification_time(source))


def modification_time(source: Source) -> int:
    """Nanoseconds; of the archive where the picture lies in one."""
    try:
        return source.path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{source.name}: cannot be read ({error.strerror}); check the file") from error


@dataclass(frozen=True)
class LatentIndex:
    """What a finished encoding recorded."""

    recipe: Recipe
    files: dict[str, PictureFile]
    """Name inside the data set -> picture."""
    variants: tuple[str, ...] = ()
    """Of the pictures, those that are encoded next to the plain ones."""

    @classmethod
    def read(cls, folder: Path, fix: str) -> Self:
        """The index of a cache; UserError, which ends with `fix`, where there is none that can be read."""
        path = folder / INDEX_NAME
        try:
            content = read_json(path, limit=_INDEX_BYTES)
            recipe = Recipe(**content["recipe"])
            files = {name: PictureFile(*values) for name, values in content["files"].items()}
            return cls(recipe, files, tuple(map(str, content.get("variants", ()))))
        except FileNotFoundError:
            what = "no such file: no latent cache, or its encoding did not come to its end"
        except OSError as error:
            what = f"cannot be read ({reason_of(error)})"
        except (ValueError, KeyError, TypeError, AttributeError):
            what = "damaged"
        raise UserError(f"{path}: {what}; {fix}")

    def write(self, folder: Path) -> None:
        files = {name: [file.size, file.mtime_ns, file.sha256] for name, file in self.files.items()}
        content: dict[str, Any] = {"recipe": asdict(self.recipe), "files": files}
        content |= {"variants": list(self.variants)} if self.variants else {}
        replace(folder / INDEX_NAME, json.dumps(content, indent=0).encode())


def named(part: str, variant: str) -> str:
    """What a latent is called: its part, and what became of the pictures, where they are not as in the files."""
    return f"{part} {variant}" if variant else part


class DamagedEntryError(UserError):
    """An entry that is absent or not what was written. The message names its file and what is wrong."""


def entry_path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.safetensors"


def kept_keys(folder: Path) -> set[str]:
    """Keys of all entries, whole or not."""
    return {path.stem for path in folder.glob("??/*.safetensors")}


def write_entry(folder: Path, key: str, part: str, latent: Tensor) -> None:
    """Keep a finite `latent` (C, h, w) on the CPU under its key; the same latent gives the same bytes.

    Not synced: what a power cut leaves half written does not pass the check when it is read.
    """
    latent = latent.contiguous()
    path = entry_path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, save({part: latent}, metadata={"sha256": _digest(key, part, latent)}))


def read_entry(folder: Path, key: str, part: str) -> Tensor:
    """The latent (C, h, w) as it was written, on the CPU.

    Raises:
        DamagedEntryError: no such file, or not one bit of it may be trusted.
    """
    path = entry_path(folder, key)
    try:
        require_file(path)
        with safe_open(path, framework="pt") as file:
            noted = (file.metadata() or {}).get("sha256")
            latent = file.get_tensor(part).clone()  # out of the mapped file: what is checked is what is used
    except FileNotFoundError:
        raise DamagedEntryError(f"{path}: missing") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedEntryError(f"{path}: truncated or damaged ({' '.join(str(error).split())[:80]})") from None
    if noted != _digest(key, part, latent):
        raise DamagedEntryError(f"{path}: damaged: its content is not what was written")
    if not all(bool(extreme.isfinite()) for extreme in latent.aminmax()):  # which NaN is, where there is one
        raise DamagedEntryError(f"{path}: holds values that are not finite")
    return latent


def _digest(key: str, part: str, latent: Tensor) -> str:
    digest = hashlib.sha256(f"{key} {part} {latent.dtype} {tuple(latent.shape)} ".encode())
    digest.update(latent.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
