"""state.json of a checkpoint, read back: every number is checked before anything of a trainee is touched.

Digests say that a file is as it was written. What was written may still be of another version, or of somebody's hand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadowlab.errors import UserError
from shadowlab.training.checkpoint_files import step_of
from shadowlab.training.saved_file import HUGE, shown
from shadowlab.training.trainee import Trainee

FIX = "this is no state of this run: remove the checkpoint to use the one before"
_STRATEGIES = ("single", "ddp", "fsdp2")
_KEYS = ("step", "position", "seed", "identity", "processes", "strategy", "ema_updates", "scaler", "skips")


def checked_numbers(content: Any, file: Path, trainee: Trainee, *, converts: bool) -> dict[str, Any]:
    """`content` of state.json, if it can be the state of `trainee`.

    Args:
        file: named in errors; its folder says which step it is of.
        converts: the trainee may be of another precision, and so with or without a gradient scaler.

    Raises:
        UserError: a key is missing, unknown, of the wrong kind, or contradicts another; names file and key.
    """
    state = _section(content, "", _KEYS, file)
    step, position, seed = (_count(state, key, file) for key in ("step", "position", "seed"))
    skips = _section(state["skips"], "skips", ("in_a_row", "total"), file)
    total, in_a_row = _count(skips, "total", file, "skips."), _count(skips, "in_a_row", file, "skips.")
    _require(step_of(file.parent) in (None, step), file, "step", step, f"that of {file.parent.name}")
    batch = state["identity"].get("effective batch") if isinstance(state["identity"], dict) else None
    if type(batch) is int:
        _require(position == step * batch, file, "position", position, "step x identity.effective batch")
    _require(seed == trainee.seed, file, "seed", seed, f"the run's, {trainee.seed}")
    _require(_count(state, "processes", file) > 0, file, "processes", state["processes"], "positive")
    _require(state["strategy"] in _STRATEGIES, file, "strategy", state["strategy"], f"one of {', '.join(_STRATEGIES)}")
    _require(isinstance(state["identity"], dict), file, "identity", state["identity"], "an object")
    # What an incident keeps is the state before its step, which may have been skipped already.
    taken = step + 1 if file.parent.parent.name == "state" else step
    _require(total <= taken, file, "skips.total", total, f"at most step, {taken}")
    _require(in_a_row <= total, file, "skips.in_a_row", in_a_row, f"at most skips.total, {total}")
    updates = state["ema_updates"]
    if trainee.ema is None:
        _require(updates is None, file, "ema_updates", updates, "null: the run has no EMA")
    elif updates is None:
        fix = "set train.ema_decay=null as the run had, or start anew"
        raise UserError(f"{file}: ema_updates is null: the run has no EMA; {fix}")
    else:
        wanted = step - total
        is_right = _count(state, "ema_updates", file) in (wanted, taken - total)
        _require(is_right, file, "ema_updates", updates, f"step without skipped ones, {wanted}")
    _check_scaler(state["scaler"], total, file, trainee, converts=converts)
    return state


def require_identity(state: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise UserError where a checkpoint is of another run than the one that is resumed.

    Args:
        state: as `checked_numbers` gives it. now: what the run is.
    """
    saved = state["identity"]
    for name, value in (dict.fromkeys(saved) | dict(now)).items():
        if saved.get(name) != value or type(saved.get(name)) is not type(value):
            raise UserError(
                f"--resume: {shown(name)} was {shown(saved.get(name, 'not noted'))} in {checkpoint}/state.json "
                f"(identity) and is {shown(value)} now; take the change back (effective batch = train.batch_size x "
                "train.gradient_accumulation_steps x processes), or start anew with another --run"
            )


def _check_scaler(saved: Any, num_skipped: int, file: Path, trainee: Trainee, *, converts: bool) -> None:
    if saved is None or trainee.scaler is None:
        if converts:
            return
        has = "null: this precision scales no gradient" if trainee.scaler is None else "an object: gradients are scaled"
        _require(saved is None and trainee.scaler is None, file, "scaler", saved, has)
        _require(num_skipped == 0, file, "skips.total", num_skipped, "0: only a gradient scaler skips")
        return
    live = trainee.scaler.state_dict()
    scaler = _section(saved, "scaler", tuple(live), file)
    for key, value in scaler.items():
        name = f"scaler.{key}"
        if key == "scale":
            is_number = type(value) in (int, float) and 0 < value < HUGE**4
            _require(is_number, file, name, value, "a positive number")
        elif key == "_growth_tracker":
            _require(_count(scaler, key, file, "scaler.") <= live["growth_interval"], file, name, value, "smaller")
        else:
            _require(type(value) is type(live[key]) and value == live[key], file, name, value, f"{live[key]!r}")


def _section(content: Any, name: str, keys: tuple[str, ...], file: Path) -> dict[str, Any]:
    """`content`, if it is an object with these keys and no other."""
    if not isinstance(content, dict):
        raise UserError(f"{file}: {name or 'the content'} is {shown(content)}, not an object; {FIX}")
    check_keys(content, dict.fromkeys(keys), file, f"{name}." if name else "")
    return content


def check_keys(found: Mapping[str, Any], wanted: Mapping[str, Any], file: Path, prefix: str = "") -> None:
    """Raise UserError where they do not have the same keys."""
    missing, strange = [key for key in wanted if key not in found], [key for key in found if key not in wanted]
    if missing:
        raise UserError(f"{file}: {prefix}{missing[0]} is missing; {FIX}")
    if strange:
        raise UserError(f"{file}: {shown(prefix + strange[0])} is unknown; {FIX}")


def _count(section: dict[str, Any], key: str, file: Path, prefix: str = "") -> int:
    value = section[key]
    is_count = type(value) is int and 0 <= value < HUGE  # true is an int, too
    _require(is_count, file, f"{prefix}{key}", value, "a whole number from 0 on")
    return int(value)


def _require(fits: bool, file: Path, key: str, value: Any, wanted: str) -> None:
    if not fits:
        raise UserError(f"{file}: {key} is {shown(value)}, must be {wanted}; {FIX}")
