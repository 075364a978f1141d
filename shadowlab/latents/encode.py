"""`shadowlab data encode`: fill the latent cache, or go on where an earlier call stopped."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from shadowlab.console import Reporter
from shadowlab.data import SampleSet, Source, in_order, one_line
from shadowlab.distributed import Processes, share_out
from shadowlab.errors import StageFailedError, UserError
from shadowlab.latents.cache import (
    DamagedEntryError,
    LatentIndex,
    PictureFile,
    Recipe,
    entry_path,
    kept_keys,
    named,
    read_entry,
    write_entry,
)
from shadowlab.settings import Config, uncached
from shadowlab.tasks import Task, open_task
from shadowlab.workers import require_few_workers

_AHEAD = 1024  # files that are asked for at once
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class EncodeReport:
    """What a call did."""

    num_samples: int
    """Samples of the data set, all of which are now in the cache."""
    num_latents: int
    """Their distinct latents; samples with the same object share its latent."""
    num_encoded: int
    """Latents written by this call."""
    num_kept: int
    """Those found whole."""
    num_damaged: int
    """Of those written, the ones that were there, but damaged."""
    num_unused: int
    """Files of the cache that belong to other pictures or another recipe."""
    mib: float
    """Size of the latents on disk."""


def encode_dataset(config: Config, folder: Path, processes: Processes, reporter: Reporter) -> EncodeReport:
    """Encode every sample of `data.path` with the configured VAE at the configured size.

    Every sample passes the VAE by itself, so that its latent depends on no other. Latents that are there already are
    read and checked; they are kept where they are whole. With `data.augment.flip` mirrored pictures are encoded, too.
    The index is written last: a cache without it is not used.
    A collective: processes share the samples, and the first has the whole report.

    Raises:
        UserError: data, VAE or folder cannot be read or written, or pictures would be changed without end.
        StageFailedError: a latent is not finite; names the sample, of which nothing is kept.
    """
    with processes.together():
        require_few_workers(config)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, not a folder; choose another --out")
        if changed := config.data.augment.needs_pictures:
            raise UserError(f"{uncached(changed)}, or train without data.latents")
        task = open_task(config)
        dataset = task.open_data()
        for notice in dataset.notices:
            reporter.warn(notice)
        task.load_vae(processes.device)
        recipe = Recipe.of(task, config.data.image_size)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    filling = _Filling(folder, dataset, task, recipe, config.data.num_workers, processes, reporter)
    return filling.run()


@dataclass(frozen=True)
class _Filling:
    """A cache that is being filled: with what, and by whom."""

    folder: Path
    dataset: SampleSet[Any]
    task: Task[Any]
    recipe: Recipe
    num_workers: int
    processes: Processes
    reporter: Reporter

    def run(self) -> EncodeReport:
        """Every process has the same lists, whatever the others write meanwhile: all that was found is exchanged."""
        folder, dataset = self.folder, self.dataset
        files = self._digest_pictures()
        variants = () if self.task.augmentation is None else self.task.augmentation.variants
        keys = [_keys(dataset, i, self.task, self.recipe, files, variants) for i in range(len(dataset))]
        parts = {key: part for of_sample in keys for part, key in of_sample.items()}
        whole, damaged = self._check_entries(parts)
        work = _missing(keys, whole)

        def encode(share: Sequence[int]) -> Iterator[None]:
            samples = in_order(dataset, share, num_workers=self.num_workers)
            for i, sample in zip(share, samples, strict=True):
                latents = _encode(self.task, sample, dataset.ids[i], work[i])
                _require_unchanged(dataset, i, files)
                with _writing(folder):
                    for part, latent in latents.items():
                        write_entry(folder, keys[i][part], part, latent)
                yield

        self._share(list(work), encode, "sample")
        num_unused, num_bytes = 0, 0
        with self.processes.together(), _writing(folder):
            if self.processes.is_main:
                LatentIndex(self.recipe, files, variants).write(folder)
                num_unused = len(kept_keys(folder)) - len(parts)
                num_bytes = sum(entry_path(folder, key).stat().st_size for key in parts)
        return EncodeReport(
            num_samples=len(dataset),
            num_latents=len(parts),
            num_encoded=len(parts) - len(whole),
            num_kept=len(whole),
            num_damaged=damaged,
            num_unused=num_unused,
            mib=num_bytes / 2**20,
        )

    def _share(self, items: Sequence[_T], work: Callable[[Sequence[_T]], Iterable[_R]], noun: str) -> list[_R]:
        return share_out(self.processes, items, work, self.reporter, noun=noun)

    def _digest_pictures(self) -> dict[str, PictureFile]:
        """Name to content of every picture that a latent is made from."""
        roles = [role for of_part in self.task.latent_parts.values() for role in of_part]
        entries = [self.dataset.entry(i) for i in range(len(self.dataset))]
        for entry in entries:
            absent = next((role for role in roles if role not in entry.sources), None)
            if absent is not None:
                raise UserError(
                    f"sample {one_line(entry.id)}: its {absent} picture is no file, and latents are kept by what a "
                    "file holds; train without data.latents"
                )
        sources = [entry.sources[role] for entry in entries for role in roles]
        found = self._share(sources, partial(self._read, PictureFile.of), "picture")
        return {source.name: file for source, file in zip(sources, found, strict=True)}

    def _check_entries(self, parts: Mapping[str, str]) -> tuple[set[str], int]:
        """Keys of the entries that are whole, and the number of those that are there but damaged."""
        there = sorted(kept_keys(self.folder) & parts.keys()) if self.processes.is_main else []
        there = self.processes.share(there)

        def fault(key: str) -> str:
            try:
                read_entry(self.folder, key, parts[key])
            except DamagedEntryError as error:
                return str(error)
            return ""

        faults = self._share(there, partial(self._read, fault), "latent")
        for message in filter(None, faults):
            self.reporter.warn(f"{message}; it is encoded again")
        return {key for key, message in zip(there, faults, strict=True) if not message}, sum(map(bool, faults))

    def _read(self, read: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
        """In several threads: reading and hashing let go of the interpreter."""
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            for first in range(0, len(items), _AHEAD):
                yield from pool.map(read, items[first : first + _AHEAD])


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space or choose another --out; what "
            "is encoded so far is kept"
        ) from error


def _keys(
    dataset: SampleSet[Any],
    i: int,
    task: Task[Any],
    recipe: Recipe,
    files: Mapping[str, PictureFile],
    variants: Sequence[str],
) -> dict[str, str]:
    """Name of a part with its variant -> key."""
    sources = dataset.entry(i).sources
    return {
        named(part, variant): recipe.key(named(part, variant), [files[sources[role].name].sha256 for role in roles])
        for part, roles in task.latent_parts.items()
        for variant in ("", *variants)
    }


def _missing(keys: Sequence[Mapping[str, str]], whole: Iterable[str]) -> dict[int, list[str]]:
    """Sample to the parts that it has to encode; a latent that samples share falls to the first of them."""
    done = set(whole)
    work: dict[int, list[str]] = {}
    for i, of_sample in enumerate(keys):
        for part, key in of_sample.items():
            if key not in done:
                done.add(key)
                work.setdefault(i, []).append(part)
    return work


def _encode(task: Task[Any], sample: Any, name: str, parts: Sequence[str]) -> dict[str, Tensor]:
    """Each part with its variant, (C, h, w) on the CPU, finite."""
    latents: dict[str, Tensor] = {}
    for part in parts:
        plain, _, variant = part.partition(" ")
        given = task.augmentation.as_variant(sample, variant) if variant and task.augmentation else sample
        latent = task.encode_part(plain, task.collate([given]).to(task.vae.device))[0].cpu()
        latents[part] = latent
        bad = latent.numel() - int(latent.isfinite().sum())
        if bad:
            pictures = " and ".join(task.latent_parts[plain])
            raise StageFailedError(
                f"sample {one_line(name)}: {bad} of {latent.numel()} values of its {part} latent are not finite, "
                f"and nothing of the sample was kept; look at its {pictures} picture (shadowlab data check) and at "
                "the VAE: model.vae must be one that is sound in float32"
            )
    return latents


def _require_unchanged(dataset: SampleSet[Any], i: int, files: Mapping[str, PictureFile]) -> None:
    """The pictures were hashed before they were decoded: a latent must not be kept under the key of older ones. What no
    latent is made of (a prompt's embedding) is not hashed."""
    entry = dataset.entry(i)
    hashed = [source for source in entry.sources.values() if source.name in files]
    changed: list[Source] = [source for source in hashed if not files[source.name].looks_like(source)]
    if changed:
        raise UserError(
            f"sample {one_line(entry.id)}: {one_line(changed[0].name)} changed while the data were being encoded; "
            "run the command again when nobody writes to them"
        )
