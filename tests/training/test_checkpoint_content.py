"""Checkpoints whose digests fit and whose content does not: every leaf of every file is spoiled in every way.

Whoever can write a file can write its digest, too; and so can another version of this program.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.training import checkpoint_files
from shadowlab.training.checkpoint import load_checkpoint, save_checkpoint
from shadowlab.training.checkpoint_files import WEIGHTS_NAME, complete_checkpoints, newest_sound_checkpoint
from shadowlab.training.trainee import Trainee
from tests import tiny
from tests.training.optimizers import take_gradient_steps
from tests.training.test_step import assert_equal, everything, take_step

Place = tuple[str | int, ...]  # keys and indices from the root of a JSON file to a value

IDENTITY = {"data": "abc", "effective batch": 4, "model": "def"}
WORDS = ("precision=fp16",)  # with a gradient scaler
HUGE = 10**400
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [1],
    {"a": 1},
    "7",
    "",
    -1,
    2.5,
    HUGE,
    math.nan,
    math.inf,
    -math.inf,
)

# What is as good as what was written: another number where any will do, words without meaning.
PLAUSIBLE: dict[str, Callable[[Any], bool]] = {
    "scaler.scale": lambda value: value == 2.5,
    "_class_name": lambda value: isinstance(value, str),
    "_diffusers_version": lambda value: isinstance(value, str),
    "_name_or_path": lambda value: isinstance(value, str),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_hub_unet(tmp_path_factory.mktemp("hub") / "unet")


@pytest.fixture(scope="module")
def sound(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run in fp16 with an EMA: it has every part that a checkpoint may have, but for optimizer.json."""
    trainee = tiny.trainee_of(hub, *WORDS)
    for step in range(2):
        take_step(trainee, step)
    return saved(trainee, tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def with_document(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that reached some parameters alone, which optimizer.json tells."""
    trainee = document_trainee(hub)
    take_gradient_steps(trainee.optimizer, dict(list(trainee.parameters().items())[:-1]), range(2))
    return saved(trainee, tmp_path_factory.mktemp("document"))


@pytest.fixture(scope="module")
def trainee(hub: Path) -> Trainee:
    return tiny.trainee_of(hub, *WORDS)


def document_trainee(hub: Path) -> Trainee:
    return tiny.trainee_of(hub, "train.ema_decay=null", trains=lambda name: name.startswith(("conv_in", "conv_out")))


def saved(trainee: Trainee, folder: Path) -> Path:
    return save_checkpoint(folder, trainee, step=2, position=8, identity=IDENTITY, keep_last=3)


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / sound.name))


def seal(path: Path) -> None:
    """Make sizes and digests fit."""
    (path / "COMPLETE").write_text(json.dumps(checkpoint_files._described(path)))


def refusal(path: Path, trainee: Trainee) -> str:
    """What is said of a checkpoint on resume. A traceback, or a resume, fails the test."""
    reported: list[str] = []
    chosen = newest_sound_checkpoint(path.parent, reported.append)
    if chosen is None:
        [text] = reported
        return text
    assert complete_checkpoints(path.parent) == [path]
    with pytest.raises(UserError) as caught:
        load_checkpoint(chosen, trainee, identity=IDENTITY)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leaves(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value of a JSON tree, inner ones too."""
    yield place, tree
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*place, key))


def spoiled(tree: Any, place: Place, value: Any, *, drop: bool = False) -> Any:
    """A copy of a JSON tree with another value at a place, or without it."""
    if not place:
        return value
    tree = copy.deepcopy(tree)
    inner = tree
    for key in place[:-1]:
        inner = inner[key]
    if drop:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return tree


def spoilings(tree: Any) -> Iterator[tuple[str, Any]]:
    """(key, tree in which it is not as it was), for every value and every way to spoil it."""
    for place, value in leaves(tree):
        key = ".".join(map(str, place))
        is_plausible = PLAUSIBLE.get(key, lambda _: False)
        for other in VALUES if len(place) < 4 else VALUES[:: len(place)]:
            if not (other == value and type(other) is type(value)) and not is_plausible(other):
                yield key, spoiled(tree, place, other)
        if place:
            yield key, spoiled(tree, place, None, drop=True)
        if isinstance(value, dict):
            yield f"{key}.unknown", spoiled(tree, place, {**value, "unknown": 1})


def names_key(text: str, key: str) -> bool:
    """Whether a refusal names the key, or the section or the list that holds it."""
    names = [part for part in key.split(".") if not part.isdigit()]
    return not names or any(name in text for name in names)


def assert_all_refused(path: Path, name: str, trainee: Trainee, tree: Any) -> int:
    tried, accepted = 0, []
    for key, other in spoilings(tree):
        (path / name).write_text(json.dumps(other))
        seal(path)
        tried += 1
        try:
            text = refusal(path, trainee)
        except pytest.fail.Exception:
            accepted.append((key, str(other)[:80]))
            continue
        assert Path(name).name in text and str(path) in text and len(text) < 600, text
        assert names_key(text, key), (key, text)
    assert not accepted
    return tried


def test_what_is_not_spoiled_is_resumed(path: Path, trainee: Trainee, hub: Path, with_document: Path) -> None:
    seal(path)
    assert newest_sound_checkpoint(path.parent, pytest.fail) == path
    state = load_checkpoint(path, trainee)
    assert (state["step"], state["position"]) == (2, 8)
    again = tiny.trainee_of(hub, *WORDS)
    for step in range(2):
        take_step(again, step)
    assert_equal(everything(trainee), everything(again))
    load_checkpoint(with_document, document_trainee(hub))


def test_every_value_of_state_json(path: Path, trainee: Trainee) -> None:
    state = json.loads((path / "state.json").read_text())
    tried = assert_all_refused(path, "state.json", trainee, state)
    assert tried > 200


@pytest.mark.parametrize("part", ["unet", "ema"])
def test_every_value_of_the_models_configuration(path: Path, trainee: Trainee, part: str) -> None:
    config = json.loads((path / part / "config.json").read_text())
    few = {key: config[key] for key in (*list(config)[::9], "_class_name", "block_out_channels", "in_channels")}
    few.pop("_name_or_path", None)  # of a loaded model alone
    for key, other in spoilings(few):
        if not key or key == ".unknown":
            other = other if isinstance(other, dict) and other.keys() > few.keys() else None
        (path / part / "config.json").write_text(json.dumps({**_without(config, few), **other} if other else other))
        seal(path)
        text = refusal(path, trainee)
        assert f"{part}/config.json" in text and names_key(text, key), (key, text)


def _without(config: dict[str, Any], few: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in few}


def test_every_value_of_optimizer_json(with_document: Path, hub: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(with_document, tmp_path / with_document.name))
    document = json.loads((path / "optimizer.json").read_text())
    [group] = document["groups"]
    assert document["without_state"] and document["state"] and group["options"]
    trainee = document_trainee(hub)
    switches = {f"groups.0.options.{key}" for key, value in group["options"].items() if isinstance(value, bool)}
    for key in switches:
        PLAUSIBLE[key] = lambda value: isinstance(value, bool)
    tried = assert_all_refused(path, "optimizer.json", trainee, document)
    assert tried > 200


TENSORS = ("unet/" + WEIGHTS_NAME, "ema/" + WEIGHTS_NAME, "optimizer.safetensors")
SPOILED: dict[str, Callable[[Tensor], Tensor | None]] = {
    "dropped": lambda tensor: None,
    "one more axis": lambda tensor: tensor[None],
    "too short": lambda tensor: tensor.flatten()[1:].clone(),
    "float64": lambda tensor: tensor.double(),
    "float16": lambda tensor: tensor.half(),
    "int64": lambda tensor: tensor.long(),
    "NaN": lambda tensor: torch.full_like(tensor, math.nan),
    "one Inf": lambda tensor: tensor.flatten().index_fill(0, torch.tensor([0]), math.inf).reshape(tensor.shape),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", TENSORS)
def test_every_kind_of_tensor(path: Path, trainee: Trainee, name: str, how: str) -> None:
    tensors = load_file(path / name)
    for key in [*list(tensors)[::90], *list(tensors)[-1:]]:
        other = SPOILED[how](tensors[key])
        save_file(_without(tensors, {key: None}) | ({} if other is None else {key: other}), path / name)
        seal(path)
        text = refusal(path, trainee)
        assert Path(name).name in text and key.rpartition("/")[0] in text, text


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_too_many(path: Path, trainee: Trainee, name: str) -> None:
    tensors = load_file(path / name)
    for key in ("unknown", "conv_in.weight/unknown", "unknown/exp_avg"):
        save_file(tensors | {key: torch.zeros(2)}, path / name)
        seal(path)
        text = refusal(path, trainee)
        assert "unknown" in text or "holds a state of" in text


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 3.0, 1e9])
def test_a_count_of_steps_that_the_run_has_not_taken(path: Path, trainee: Trainee, value: float) -> None:
    """A negative one turns AdamW's bias correction around, silently."""
    tensors = load_file(path / "optimizer.safetensors")
    save_file(tensors | {"conv_in.bias/step": torch.tensor(value)}, path / "optimizer.safetensors")
    seal(path)
    assert "conv_in.bias/step is" in refusal(path, trainee)


def test_a_mean_of_squares_that_is_negative(path: Path, trainee: Trainee) -> None:
    tensors = load_file(path / "optimizer.safetensors")
    tensors["conv_in.bias/exp_avg_sq"][0] = -1e-3
    save_file(tensors, path / "optimizer.safetensors")
    seal(path)
    assert "conv_in.bias/exp_avg_sq is negative" in refusal(path, trainee)


# --- COMPLETE ------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_listed_is_not_read(path: Path, with_document: Path, trainee: Trainee) -> None:
    """Without a digest, anything could stand there."""
    shutil.copy(with_document / "optimizer.json", path)
    assert "optimizer.json is there and COMPLETE does not list it" in refusal(path, trainee)
    assert complete_checkpoints(path.parent) == []
    (path / "optimizer.json").unlink()
    (path / "notes.txt").write_text("the best one so far")
    assert newest_sound_checkpoint(path.parent, pytest.fail) == path


def test_every_value_of_the_marker(path: Path, trainee: Trainee) -> None:
    marker = json.loads((path / "COMPLETE").read_text())
    for _, other in spoilings(marker):
        (path / "COMPLETE").write_text(json.dumps(other))
        if isinstance(other, dict) and other.keys() == marker.keys() and _digests(other) == _digests(marker):
            continue  # a key more in an entry
        assert (
            "COMPLETE" in refusal(path, trainee)
            or "SHA-256" in refusal(path, trainee)
            or "bytes" in refusal(path, trainee)
        )
        assert newest_sound_checkpoint(path.parent, lambda _: None) is None


def _digests(marker: dict[str, Any]) -> list[Any]:
    return [(one.get("bytes"), one.get("sha256")) if isinstance(one, dict) else one for one in marker.values()]


@pytest.mark.parametrize("name", ["../../notes", "/etc/hostname", "x" * 300, "a\0b", "unet"])
def test_a_marker_that_lists_what_is_no_file_of_a_checkpoint(path: Path, trainee: Trainee, name: str) -> None:
    marker = json.loads((path / "COMPLETE").read_text())
    (path / "COMPLETE").write_text(json.dumps(marker | {name: {"bytes": 1, "sha256": "0"}}))
    text = refusal(path, trainee)
    assert "which is no file of a checkpoint" in text and "\n" not in text and len(text) < 400


# --- what lies next to checkpoints ---------------------------------------------------------------------------------


def test_what_is_no_checkpoint_is_left_alone(trainee: Trainee, path: Path) -> None:
    """Copies, notes and files: not resumed from, not counted among those that are kept, not removed."""
    folder = path.parent
    foreign = [shutil.copytree(path, folder / f"{path.name}{end}") for end in ("-best", " (copy)", ".bak", "0" * 20)]
    foreign += [folder / name for name in ("step-", "step-12", "step-٠٠٠٠٠٠٠٣", "notes", ".step-x.partial")]
    for place in foreign[4:]:
        (place / "inner").mkdir(parents=True)
    (folder / "step-00000009").write_text("a file")
    (folder / "step-00000008").mkdir()
    (folder / "step-00000008" / "my notes.txt").write_text("mine")
    (folder / "latest").symlink_to(path)
    before = sorted(folder.rglob("*"))
    assert complete_checkpoints(folder) == [path]
    assert checkpoint_files.remove_unfinished(folder) == []
    assert newest_sound_checkpoint(folder, lambda _: None) == path
    checkpoint_files.drop_old(folder, 2, 1, None)
    assert sorted(folder.rglob("*")) == before
    assert path.name not in checkpoint_files.foreign_entries(folder)
    assert "step-00000002-best" in checkpoint_files.foreign_entries(folder)


def test_a_copy_under_another_steps_name_is_passed_over(path: Path) -> None:
    """It would go on at step 2 and be taken for step 7."""
    copied = shutil.copytree(path, path.parent / "step-00000007")
    reported: list[str] = []
    assert newest_sound_checkpoint(path.parent, reported.append) == path
    assert len(reported) == 1 and f"{copied}: state.json is of step 2: the folder was renamed or copied" in reported[0]
