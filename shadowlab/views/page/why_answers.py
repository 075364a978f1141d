"""What `shadowlab why` found out about an incident, as it kept it there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics.files import read_json, reason_of

FILE = "why.json"
_GOOD, _MIXED = ("finite",), ("another fault", "some fail")
_LARGEST = 4 * 2**20  # bytes
_MOST = 60  # outcomes


@dataclass(frozen=True)
class Answer:
    """One changed thing."""

    changed: str
    outcome: str
    meaning: str
    detail: str

    @property
    def grade(self) -> str:
        """good, mixed, or empty: its colour."""
        return "good" if self.outcome in _GOOD else "mixed" if self.outcome in _MIXED else ""


@dataclass(frozen=True)
class WhyAnswers:
    """All of them."""

    conclusion: str
    origin: str
    """What the step was repeated from, and where."""
    answers: tuple[Answer, ...]
    left_out: tuple[tuple[str, str], ...]
    """(name, reason)."""

    @classmethod
    def read(cls, incident: Path, problems: list[str]) -> "WhyAnswers | None":
        """None where `why` was not asked yet; appends what cannot be read."""
        file = incident / FILE
        if not file.exists():
            return None
        try:
            content: Any = read_json(file, limit=_LARGEST, inside=incident)
        except OSError as error:
            problems.append(f"{file}: cannot be read ({reason_of(error)}); it is left out")
            return None
        except ValueError as error:
            problems.append(f"{file}: {error}; it is left out")
            return None
        if not isinstance(content, Mapping):
            problems.append(f"{file}: not a JSON object; it is left out")
            return None
        answers = [
            Answer(*(_text(one, key) for key in ("name", "result", "meaning", "detail")))
            for one in _objects(content.get("counterfactuals"))
        ]
        left_out = [(_text(one, "kind"), _text(one, "reason")) for one in _objects(content.get("left_out"))]
        place = ", from ".join(filter(None, (_text(content, "device"), _text(content, "from"))))
        return cls(_text(content, "conclusion"), place, tuple(answers), tuple(left_out))


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value[:_MOST] if isinstance(one, Mapping)] if isinstance(value, list) else []


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return "" if value is None else str(value)
