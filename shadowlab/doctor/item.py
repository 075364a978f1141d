"""One line of an examination."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Item:
    """What was looked at, and what was found. A note is worth knowing; what failed keeps shadowlab from working."""

    topic: str
    """Heading that it belongs under: `versions`, `device`, ..."""
    state: State
    text: str
    fix: str = ""
    """What to do; empty where there is nothing to do."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
