"""Whether a verdict is what a case states, field by field."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diagnostics import Verdict
from shadowlab.bench.corpus import Expected, Fault
from shadowlab.bench.peer_score import place_of

FIELDS = ("phase", "exception", "cause", "place", "samples", "text", "replayed", "state", "alarm")
"""`text`: words that the verdict must contain. Of a watched loop alone: `replayed`, the step gave it again, and
`state`, all is as before the step. `alarm`: of a benign case, right where none is raised."""


@dataclass(frozen=True)
class Wrong:
    """A field in which the verdict is not what the case states."""

    field: str
    expected: str
    seen: str


@dataclass(frozen=True)
class Count:
    """Cases that are right, of those that state what is right."""

    right: int
    stated: int


def score(fault: Fault, verdict: Verdict | None, *, is_watched: bool = False) -> dict[str, bool | None]:
    """Field -> whether the verdict has it right; None where the case does not state it.

    is_watched: whether it comes from a loop under `Watch`, not from `explain`.
    """
    right: dict[str, bool | None] = dict.fromkeys(FIELDS)
    expected = _expected(fault, is_watched)
    if expected is None:
        return {**right, "alarm": verdict is None}
    for field, stated in _stated(fault, expected).items():
        right[field] = verdict is not None and all(_agree(key, stated[key], _seen(verdict, key)) for key in stated)
    return right


def wrongs(fault: Fault, verdict: Verdict | None, *, is_watched: bool = False) -> Iterator[Wrong]:
    """What `score` finds wrong, with what was seen."""
    expected = _expected(fault, is_watched)
    if expected is None:
        if verdict is not None:
            yield Wrong(
                "alarm", "none", f"{verdict.headline()}; {verdict.exception}, {verdict.cause}, {verdict.source}"
            )
        return
    for field, stated in _stated(fault, expected).items():
        for key, value in stated.items():
            seen = "no finding" if verdict is None else _seen(verdict, key)
            if verdict is None or not _agree(key, value, seen):
                yield Wrong(field if field == key else f"{field}: {key}", str(value), str(seen))


def _expected(fault: Fault, is_watched: bool) -> Expected | None:
    return fault.expected_watched if is_watched else fault.expected


def _stated(fault: Fault, expected: Expected) -> dict[str, dict[str, Any]]:
    """Field -> the parts of it that the case states."""
    place = {key: getattr(expected, key) for key in ("op", "module", "parameter")}
    if expected.at_origin:
        if fault.origin is None:
            raise ValueError(f"{fault.name}: says `at_origin`, but marks no line")
        place["source"] = fault.origin
    fields = {key: {key: getattr(expected, key)} for key in ("phase", "exception", "cause")}
    fields["place"] = place
    fields["samples"] = {key: getattr(expected, key) for key in ("samples", "sample_ids")}
    fields["text"] = {"text": expected.says or ...}
    stated = {field: {k: v for k, v in parts.items() if v is not ...} for field, parts in fields.items()}
    return {field: parts for field, parts in stated.items() if parts}


def _seen(verdict: Verdict, key: str) -> Any:
    return " ".join(str(verdict).split()) if key == "text" else getattr(verdict, key)


def _agree(key: str, expected: Any, seen: Any) -> bool:
    if key == "source":
        return seen is not None and place_of(expected) == place_of(seen)
    if key in ("samples", "sample_ids"):
        return tuple(expected) == tuple(seen)
    if key == "text":
        return all(word.lower() in seen.lower() for word in expected)
    return bool(expected == seen)


def totals(scores: Iterable[Mapping[str, bool | None]]) -> dict[str, Count]:
    """Field -> cases that are right of those that state it, for the scores of several cases."""
    scores = list(scores)
    answers = {field: [right[field] for right in scores if right[field] is not None] for field in FIELDS}
    return {field: Count(sum(map(bool, values)), len(values)) for field, values in answers.items()}
