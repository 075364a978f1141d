"""Which samples a model has been trained on: those whose object is in its training split."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diagnostics.files import read_json
from shadowlab.data import SampleSet, Source, one_line, split_by_object
from shadowlab.errors import UserError
from shadowlab.inference import LoadedModel
from shadowlab.settings import Config
from shadowlab.tasks import Task, open_task


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """What is known of a data set's samples."""

    flags: np.ndarray
    """(N,) bool: its object is in the training split."""
    note: str
    """One sentence; empty where there is nothing to say."""
    is_known: bool = True
    """Otherwise the flags say nothing."""


def trained_on(model: LoadedModel, data: SampleSet[Any]) -> TrainedOn:
    """Compare a data set with what a model was trained on.

    Of the same data set its training split is known exactly. Of another one an object counts as the same where it has
    the same name and one of its pictures, the target's left out, is the same to the byte: names alone say little, for
    every render begins with obj_0000.
    """
    config, recorded = model.config, _recorded_fingerprint(model)
    training = _training_set(config)
    fingerprint = recorded or (None if training is None else training.fingerprint())
    where = one_line(config.data.path)
    if fingerprint == data.fingerprint():
        flags = _members(data.object_ids, _training_objects(data, config))
        return TrainedOn(flags, f"{_count(flags)} of the training split are judged apart" if flags.any() else "")
    if training is None or (recorded is not None and training.fingerprint() != recorded):
        return TrainedOn(
            np.zeros(len(data), np.bool_),
            f"whether the model was trained on any of these objects is not known: its data set {where} is not here, or "
            "has changed since",
            is_known=False,
        )
    objects = _training_objects(training, config)
    named = _members(data.object_ids, objects)
    if not named.any():
        return TrainedOn(named, "")
    same = _of_the_same_pictures(data, training, set(np.array(data.object_ids, object)[named]), _roles(model.task))
    flags = named & _members(data.object_ids, same)
    note = f"{_count(flags)} of the training split are judged apart" if flags.any() else ""
    if len(same) < len(set(np.array(data.object_ids, object)[named])):
        other = f"objects with the name of one of {where}, but other pictures, count as other objects"
        note = f"{note}; {other}" if note else other
    return TrainedOn(flags, note)


def _recorded_fingerprint(model: LoadedModel) -> str | None:
    """Of the data set, as the checkpoint noted it."""
    if model.step is None:
        return None
    try:
        state = read_json(model.place.folder / "state.json", inside=model.place.folder)
    except (OSError, ValueError):
        return None
    identity = state.get("identity") if isinstance(state, dict) else None
    found = identity.get("data") if isinstance(identity, dict) else None
    return found if isinstance(found, str) else None


def _training_set(config: Config) -> SampleSet[Any] | None:
    try:
        return open_task(config).open_data()
    except UserError:
        return None


def _training_objects(data: SampleSet[Any], config: Config) -> set[str]:
    object_ids, held_out = data.object_ids, getattr(data, "held_out", None)
    try:
        split = split_by_object(object_ids, config.data.validation_fraction, config.seed, held_out)
    except UserError:  # nobody can train on it
        return set()
    return {object_ids[i] for i in split.train}


def _members(object_ids: Sequence[str], objects: set[str]) -> np.ndarray:
    return np.fromiter((name in objects for name in object_ids), np.bool_, len(object_ids))


def _roles(task: Task[Any]) -> set[str]:
    """Of pictures that the model is given."""
    return {role for part, roles in task.latent_parts.items() if part != "data" for role in roles}


def _of_the_same_pictures(data: SampleSet[Any], training: SampleSet[Any], names: set[str], roles: set[str]) -> set[str]:
    """Those of the objects of which any picture is in both sets; or that have no picture that could be compared."""
    ours, theirs = (_pictures(one, names, roles) for one in (data, training))
    return {name for name in names if not ours[name] or _share_one(ours[name], theirs[name])}


def _pictures(data: SampleSet[Any], names: set[str], roles: set[str]) -> Mapping[str, list[Source]]:
    found: dict[str, list[Source]] = defaultdict(list)
    for i, name in enumerate(data.object_ids):
        if name in names:
            found[name] += [source for role, source in data.entry(i).sources.items() if role in roles]
    return found


def _share_one(ours: Sequence[Source], theirs: Sequence[Source]) -> bool:
    for source in ours:
        alike = [other for other in theirs if other.size == source.size]
        if alike and source.read() in (other.read() for other in alike):
            return True
    return False


def _count(flags: np.ndarray) -> str:
    number = int(flags.sum())
    return f"{number} sample{'' if number == 1 else 's'} of objects"
