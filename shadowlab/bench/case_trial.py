"""One case of the corpus: its step under `explain`, and the loop that it belongs to under `Watch`."""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diagnostics import NonFiniteError, Verdict, Watch, explain
from shadowlab.bench.corpus import Fault, Scene
from shadowlab.bench.scoring import FIELDS, Wrong, score, wrongs
from shadowlab.bench.states import bits_of, state_of

EARLY = "early"
"""Tag of a case whose fault is an event of many: the loop may be stopped before its last step."""


@dataclass(frozen=True)
class Trial:
    """What became of one case under one tool."""

    right: Mapping[str, bool | None]
    """Field -> whether it is right; None where the case does not state it."""
    wrong: tuple[Wrong, ...]
    error: str | None
    """What the case raised and should not have."""
    verdict: Verdict | None
    seconds: float


@dataclass(frozen=True)
class _Seen:
    """What a run showed."""

    verdict: Verdict | None = None
    error: str | None = None
    incident: Path | None = None
    moved: tuple[str, ...] | None = None
    """What is not as it should be after the step; None where that is not asked."""
    is_replayed: bool | None = None
    """Whether the step gave the value again; None where that is not asked."""


@contextmanager
def quiet() -> Iterator[None]:
    """The same randomness for everyone; nothing that a case does to it, or warns of, is left behind."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        had_group = dist.is_initialized()
        try:
            yield
        finally:
            if dist.is_initialized() and not had_group:
                dist.destroy_process_group()


def explained(fault: Fault) -> Trial:
    """The step under `explain`, after what comes before it."""
    return _trial(fault, _explained, is_watched=False)


def watched(fault: Fault, incidents: Path | None = None) -> Trial:
    """The whole loop under `Watch`.

    incidents: folder for its evidence; by default that is thrown away.
    """
    if incidents is not None:
        return _trial(fault, lambda scene: _watched(fault, scene, incidents), is_watched=True)
    with tempfile.TemporaryDirectory() as folder:
        return watched(fault, Path(folder))


def _trial(fault: Fault, run: Callable[[Scene], _Seen], *, is_watched: bool) -> Trial:
    start = time.perf_counter()
    try:
        with quiet():
            seen = run(fault.build())
    except Exception as caught:  # one broken case must not hide the others
        seen = _Seen(error=_text(caught))
    seconds = time.perf_counter() - start
    try:
        right = score(fault, seen.verdict, is_watched=is_watched)
        wrong = list(wrongs(fault, seen.verdict, is_watched=is_watched))
    except ValueError as caught:  # the case itself is wrong
        right, wrong, seen = dict.fromkeys(FIELDS), [], replace(seen, error=seen.error or str(caught))
    if seen.moved is not None:
        right["state"] = not seen.moved
        wrong += [Wrong("state", "as before", ", ".join(seen.moved))] * bool(seen.moved)
    if seen.is_replayed is not None:
        right["replayed"] = seen.is_replayed
        wrong += [Wrong("replayed", "the same again", "finite")] * (not seen.is_replayed)
    if seen.error is not None:
        right = {field: None if answer is None else False for field, answer in right.items()}
        wrong = [Wrong("error", "no exception", seen.error), *wrong]
    return Trial(right, tuple(wrong), seen.error, seen.verdict, seconds)


def _explained(scene: Scene) -> _Seen:
    scene.start()
    try:
        return _Seen(explain(scene.step, model=scene.model, optimizer=scene.optimizer, batch=scene.batch))
    except BaseException as error:
        if scene.raises is None or not isinstance(error, scene.raises):
            raise
        return _Seen()


def _watched(fault: Fault, scene: Scene, incidents: Path) -> _Seen:
    watch = Watch(scene.models, scene.optimizer, incidents=incidents, **scene.watch)
    try:
        return _watched_loop(fault, scene, watch)
    finally:
        watch.detach()


def _watched_loop(fault: Fault, scene: Scene, watch: Watch) -> _Seen:
    loop = [*((earlier, None) for earlier in scene.before), (scene.step, scene.batch)]
    for i, (step, batch) in enumerate(loop):
        before = _kept(scene)
        is_last = i == len(loop) - 1
        try:
            watch.step(step, batch=batch)
        except NonFiniteError as error:
            if is_last or EARLY in fault.tags:
                return _tripped(fault, scene, error, before)
            return _Seen(error=f"healthy step {i} of the loop: {error.verdict.headline()}")
        except BaseException as error:
            if not is_last or scene.raises is None or type(error) is not scene.raises:
                raise
            return _Seen(moved=_moved(_unwatched(fault), _kept(scene)))
        if scene.between is not None:
            scene.between()
    if fault.expected_watched is not None:
        return _Seen()
    return _Seen(moved=_moved(_unwatched(fault), _kept(scene)))


def _tripped(fault: Fault, scene: Scene, error: NonFiniteError, before: Mapping[str, bytes]) -> _Seen:
    if "accumulation" not in fault.tags:  # such a step drops its gradients first: nobody has them any more
        before = {name: value for name, value in before.items() if not name.endswith(".grad")}
    moved: tuple[str, ...] | None = _moved(before, _kept(scene)) if fault.is_restored else None
    if error.is_restored != fault.is_restored:
        moved = (f"says that it is{'' if error.is_restored else ' not'} restored",)
    wrong = None
    if scene.raises is not None and not isinstance(error.__cause__, scene.raises):
        wrong = f"raised from {error.__cause__!r}, not from {scene.raises.__name__}"
    return _Seen(error.verdict, wrong, error.incident, moved, error.verdict.reproducible is True)


def _kept(scene: Scene) -> dict[str, bytes]:
    """Weights, buffers, optimizer states, and gradients where there are any, bit for bit."""
    state: dict[str, Any] = state_of(scene.models, scene.optimizer, gradients=True)
    return bits_of({name: value for name, value in state.items() if value is not None})


def _moved(expected: Mapping[str, bytes], seen: Mapping[str, bytes]) -> tuple[str, ...]:
    return tuple(name for name in expected if seen.get(name) != expected[name])


def _unwatched(fault: Fault) -> dict[str, bytes]:
    """What the same loop leaves without any tool."""
    with quiet():
        scene = fault.build().start()
        try:
            scene.step()
        except BaseException as error:
            if scene.raises is None or not isinstance(error, scene.raises):
                raise
            return _kept(scene)
        if scene.between is not None:
            scene.between()
    return _kept(scene)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
