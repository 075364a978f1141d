"""Latents in place of pictures: a data set over the cache, and its batches.

Legend: B batch, C channels, h w latents.
"""

import shlex
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.data import Entry, Role, SampleSet, one_line
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.latents.cache import (
    DamagedEntryError,
    LatentIndex,
    PictureFile,
    Recipe,
    entry_path,
    kept_keys,
    named,
    read_entry,
)
from shadowlab.settings import Config
from shadowlab.tasks import Augmentation, Task

_RACY = "their bytes were compared instead, as they will be at each start until the data are encoded again"


def encode_command(config: Config, folder: str | Path | None = None) -> str:
    """The command that fills the cache for this configuration, whatever preset it came from."""
    words = ["shadowlab", "data", "encode", "--data", config.data.path, "--out", str(folder or config.data.latents)]
    words += ["--set", f"data.image_size={config.data.image_size}", "--set", f"model.vae={config.model.vae_source}"]
    words += ["--set", f"task={config.task}"] if config.task != Config().task else []
    for name, share in config.data.augment.kept_variants.items():
        words += ["--set", f"data.augment.{name}={share:g}"]
    return shlex.join([*words, *(["--seed", str(config.seed)] if config.model.vae_is_random else [])])


def require_index(config: Config) -> None:
    """Raise UserError where `data.latents` names no latent cache, one of pictures of another size, or one without the
    changed ones that `data.augment` needs."""
    index = _read_index(config)
    if config.data.augment.kept_variants and not index.variants:
        raise UserError(_unchanged(config))


def _unchanged(config: Config) -> str:
    wanted = config.data.augment.kept_variants
    kind = "mirrored pictures" if list(wanted) == ["flip"] else "pictures changed in all the ways"
    asked = " and ".join(f"data.augment.{name} {share:g}" for name, share in wanted.items())
    return (
        f"{config.data.latents}: holds no latents of {kind}, which {asked} need{'s' if len(wanted) == 1 else ''}; run: "
        f"{encode_command(config)}"
    )


def _read_index(config: Config) -> LatentIndex:
    folder, fix = Path(config.data.latents or "").expanduser(), f"run: {encode_command(config)}"
    index = LatentIndex.read(folder, fix)
    if index.recipe.image_size != config.data.image_size:
        raise UserError(
            f"{folder}: latents of pictures with {index.recipe.image_size} pixels a side, not "
            f"{config.data.image_size} as data.image_size says; {fix}"
        )
    return index


@dataclass(frozen=True, eq=False)
class LatentSample:
    """One sample without its pictures."""

    id: str
    latents: dict[str, Tensor]
    """Each part (C, h, w) float32."""
    numbers: dict[str, Tensor]
    """As `Task.numbers` gives them."""


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """LatentSamples stacked."""

    ids: list[str]
    latents: dict[str, Tensor]
    """Each part (B, C, h, w) float32."""
    numbers: dict[str, Tensor]
    """Each (B, ...)."""

    def __len__(self) -> int:
        return len(self.ids)


def collate_latents(samples: Sequence[LatentSample]) -> LatentBatch:
    """Stack samples in their order."""
    parts, names = samples[0].latents, samples[0].numbers
    return LatentBatch(
        ids=[sample.id for sample in samples],
        latents={part: torch.stack([sample.latents[part] for sample in samples]) for part in parts},
        numbers={name: torch.stack([sample.numbers[name] for sample in samples]) for name in names},
    )


def encoded_latents(task: Task[Any], batch: LatentBatch, positions: Tensor | None = None) -> EncodedBatch:
    """What `task.encode` makes of the same samples' pictures, without the VAE. positions: (B,) int64, by default
    0 .. B-1."""
    positions = torch.arange(len(batch)) if positions is None else positions
    return task.assemble(list(batch.ids), positions, batch.latents, batch.numbers)


class LatentDataset:
    """The latents of a data set's samples; safe to fork and to pickle. Pictures are not decoded.

    Numbers are read from the data set's metadata, so that editing one needs no new encoding.

    Args:
        config: names the cache, and in messages how to fill it.
        indices: samples of `dataset` that will be read; only these need to be in the cache.
        augmentation: of samples that are read with `augmented`; the cache must hold all variants of their pictures.

    Attributes:
        notices: remarks that the caller should print.

    Raises:
        UserError: the cache is absent, of another VAE, image size or version, or lacks the latents of these pictures
            as they are now; names the sample.
    """

    def __init__(
        self,
        config: Config,
        dataset: SampleSet[Any],
        task: Task[Any],
        indices: Iterable[int],
        augmentation: Augmentation | None = None,
    ) -> None:
        assert config.data.latents is not None, "asked for where there is a cache"
        self.folder = Path(config.data.latents).expanduser()
        self._dataset, self._fix = dataset, f"run: {encode_command(config)}"
        self._recipe = Recipe.of(task, config.data.image_size)
        self._parts, self._numbers = dict(task.latent_parts), task.numbers
        index = _read_index(config)
        if differences := index.recipe.differences(self._recipe):
            raise UserError(f"{self.folder}: not this run's latents ({'; '.join(differences)}); {self._fix}")
        self._augmentation = augmentation
        self._variants = () if augmentation is None else augmentation.variants
        if not set(self._variants) <= set(index.variants):
            raise UserError(_unchanged(config))
        self._touched: list[str] = []
        kept = kept_keys(self.folder)
        self._keys = {i: self._find(dataset.entry(i), index, kept) for i in indices}
        self.notices: list[str] = []
        if self._touched:
            self.notices.append(
                f"{self.folder}: {len(self._touched)} pictures (first {one_line(self._touched[0])}) have another "
                f"modification time than when they were encoded: {_RACY}"
            )

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> LatentSample:
        """Sample i, if it is one of `indices`. Raises UserError naming sample and file if an entry is damaged."""
        entry = self._dataset.entry(i)
        return LatentSample(entry.id, self._latents(i, entry, ""), self._numbers(entry))

    def augmented(self, i: int, position: int) -> LatentSample:
        """Sample i as it is at this position of the stream. Raises as `__getitem__`."""
        assert self._augmentation is not None, "asked for where there is one"
        entry = self._dataset.entry(i)
        latents = self._latents(i, entry, self._augmentation.variant(position))
        return LatentSample(entry.id, latents, self._augmentation.numbers(self._numbers(entry), position))

    def _latents(self, i: int, entry: Entry, variant: str) -> dict[str, Tensor]:
        names = {part: named(part, variant) for part in self._parts}
        try:
            return {part: read_entry(self.folder, self._keys[i][name], name) for part, name in names.items()}
        except DamagedEntryError as error:
            raise UserError(f"sample {one_line(entry.id)}: {error}; {self._fix}") from None

    def _find(self, entry: Entry, index: LatentIndex, kept: Container[str]) -> dict[str, str]:
        """Name of a part with its variant -> key of its latent; all of them are there."""
        digests = {role: self._digest(entry, role, index) for roles in self._parts.values() for role in roles}
        keys = {
            named(part, variant): self._recipe.key(named(part, variant), [digests[role] for role in roles])
            for part, roles in self._parts.items()
            for variant in ("", *self._variants)
        }
        for part, key in keys.items():
            if key not in kept:
                path = entry_path(self.folder, key)
                raise UserError(f"sample {one_line(entry.id)}: its {part} latent {path} is missing; {self._fix}")
        return keys

    def _digest(self, entry: Entry, role: Role, index: LatentIndex) -> str:
        source = entry.sources[role]
        where = f"sample {one_line(entry.id)}: {one_line(source.name)}"
        known = index.files.get(source.name)
        if known is None:
            raise UserError(f"{where} is not in the latent cache {self.folder}; {self._fix}")
        if not known.looks_like(source):
            self._touched.append(source.name)
            if PictureFile.of(source).sha256 != known.sha256:
                raise UserError(f"{where} has changed since {self.folder} was encoded; {self._fix}")
        return known.sha256
