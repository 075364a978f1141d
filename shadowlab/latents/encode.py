"""`shadowlab data encode`: fill the latent cache, or go on where an earlier call stopped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from shadowlab.console import Reporter
from shadowlab.data import SampleSet, Source, in_order, one_line
from shadowlab.errors import StageFailedError, UserError
from shadowlab.latents.cache import (
    DamagedEntryError,
    LatentIndex,
    PictureFile,
    Recipe,
    entry_path,
    kept_keys,
    read_entry,
    write_entry,
)
from shadowlab.settings import Config
from shadowlab.tasks import Task, open_task

_NUM_LINES = 4  # of progress, where there is no bar
_T = TypeVar("_T")


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


def encode_dataset(config: Config, folder: Path, device: torch.device, reporter: Reporter) -> EncodeReport:
    """Encode every sample of `data.path` with the configured VAE at the configured size.

    Every sample passes the VAE by itself, so that its latent depends on no other. Latents that are there already are
    read and checked; they are kept where they are whole. The index is written last: a cache without it is not used.

    Raises:
        UserError: data, VAE or folder cannot be read or written.
        StageFailedError: a latent is not finite; names the sample, of which nothing is kept.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder; choose another --out")
    task = open_task(config)
    dataset = task.open_data()
    for notice in dataset.notices:
        reporter.warn(notice)
    task.load_vae(device)
    recipe = Recipe.of(task, config.data.image_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _fill(folder, dataset, task, recipe, config.data.num_workers, reporter)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space or choose another --out; what "
            "is encoded so far is kept"
        ) from error


def _fill(
    folder: Path, dataset: SampleSet[Any], task: Task[Any], recipe: Recipe, num_workers: int, reporter: Reporter
) -> EncodeReport:
    files = _digest_pictures(dataset, task, num_workers, reporter)
    keys = [_keys(dataset, i, task, recipe, files) for i in range(len(dataset))]
    parts = {key: part for of_sample in keys for part, key in of_sample.items()}
    whole, damaged = _check_entries(folder, parts, num_workers, reporter)
    work = _missing(keys, whole)
    samples = in_order(dataset, list(work), num_workers=num_workers)
    for sample, (i, missing) in zip(_counted(samples, len(work), "sample", reporter), work.items(), strict=True):
        latents = _encode(task, sample, dataset.ids[i], missing)
        _require_unchanged(dataset, i, files)
        for part, latent in latents.items():
            write_entry(folder, keys[i][part], part, latent)
    LatentIndex(recipe, files).write(folder)
    return EncodeReport(
        num_samples=len(dataset),
        num_latents=len(parts),
        num_encoded=len(parts) - len(whole),
        num_kept=len(whole),
        num_damaged=damaged,
        num_unused=len(kept_keys(folder)) - len(parts),
        mib=sum(entry_path(folder, key).stat().st_size for key in parts) / 2**20,
    )


def _digest_pictures(
    dataset: SampleSet[Any], task: Task[Any], num_workers: int, reporter: Reporter
) -> dict[str, PictureFile]:
    """Name to content of every picture that a latent is made from."""
    roles = [role for of_part in task.latent_parts.values() for role in of_part]
    entries = [dataset.entry(i) for i in range(len(dataset))]
    for entry in entries:
        absent = next((role for role in roles if role not in entry.sources), None)
        if absent is not None:
            raise UserError(
                f"sample {one_line(entry.id)}: its {absent} picture is no file, and latents are kept by what a file "
                "holds; train without data.latents"
            )
    sources = [entry.sources[role] for entry in entries for role in roles]
    with ThreadPoolExecutor(max(1, num_workers)) as pool:  # reading and hashing let go of the interpreter
        found = list(_counted(pool.map(PictureFile.of, sources), len(sources), "picture", reporter))
    return {source.name: file for source, file in zip(sources, found, strict=True)}


def _keys(
    dataset: SampleSet[Any], i: int, task: Task[Any], recipe: Recipe, files: Mapping[str, PictureFile]
) -> dict[str, str]:
    sources = dataset.entry(i).sources
    return {
        part: recipe.key(part, [files[sources[role].name].sha256 for role in roles])
        for part, roles in task.latent_parts.items()
    }


def _check_entries(
    folder: Path, parts: Mapping[str, str], num_workers: int, reporter: Reporter
) -> tuple[set[str], int]:
    """Keys of the entries that are whole, and the number of those that are there but damaged."""
    there = sorted(kept_keys(folder) & parts.keys())

    def fault(key: str) -> str:
        try:
            read_entry(folder, key, parts[key])
        except DamagedEntryError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        faults = list(_counted(pool.map(fault, there), len(there), "latent", reporter))
    for message in filter(None, faults):
        reporter.warn(f"{message}; it is encoded again")
    return {key for key, message in zip(there, faults, strict=True) if not message}, sum(map(bool, faults))


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
    """Each part (C, h, w) on the CPU, finite."""
    batch = task.collate([sample]).to(task.vae.device)
    latents = {part: task.encode_part(part, batch)[0].cpu() for part in parts}
    for part, latent in latents.items():
        bad = latent.numel() - int(latent.isfinite().sum())
        if bad:
            pictures = " and ".join(task.latent_parts[part])
            raise StageFailedError(
                f"sample {one_line(name)}: {bad} of {latent.numel()} values of its {part} latent are not finite, "
                f"and nothing of the sample was kept; look at its {pictures} picture (shadowlab data check) and at "
                "the VAE: model.vae must be one that is sound in float32"
            )
    return latents


def _require_unchanged(dataset: SampleSet[Any], i: int, files: Mapping[str, PictureFile]) -> None:
    """The pictures were hashed before they were decoded: a latent must not be kept under the key of older ones."""
    entry = dataset.entry(i)
    changed: list[Source] = [s for s in entry.sources.values() if not files[s.name].looks_like(s)]
    if changed:
        raise UserError(
            f"sample {one_line(entry.id)}: {one_line(changed[0].name)} changed while the data were being encoded; "
            "run the command again when nobody writes to them"
        )


def _counted(items: Iterable[_T], total: int, noun: str, reporter: Reporter) -> Iterator[_T]:
    """The items, with their progress shown."""
    with reporter.start(f"{noun}s", total, noun=noun):
        for number, item in enumerate(items, start=1):
            yield item
            reporter.advance(number, total, {}, log=number == total or number % max(1, total // _NUM_LINES) == 0)
