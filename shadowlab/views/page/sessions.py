"""The sessions of a run: its first, and one for each time that it was resumed."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shadowlab.plain_text import counted
from shadowlab.views.page.wording import moment


@dataclass(frozen=True)
class Session:
    """One command that trained the run on."""

    resumed_at: int | None
    """Steps that were done before; None where nothing was, or where it was not recorded."""
    command: str
    """As it is typed; empty where it was not recorded."""
    started: str
    """In UTC; empty where it was not recorded."""

    @property
    def text(self) -> str:
        """`Resumed after 40 steps, 2026-01-31 09:30 UTC`."""
        after = "" if self.resumed_at is None else f" after {counted(self.resumed_at, 'step')}"
        return f"Resumed{after}{f', {self.started}' if self.started else ''}"


def resumed_sessions(headers: Sequence[Mapping[str, Any]], stage: str) -> list[Session]:
    """Those after the first, in their order.

    Args:
        headers: of the run's records, one a session.
        stage: whose sessions; the headers of others are left out.
    """
    own = [header for header in headers if header.get("stage") == stage]
    found = [_session(header) for header in own]
    return [session for i, session in enumerate(found) if i or session.resumed_at is not None]


def _session(header: Mapping[str, Any]) -> Session:
    at, words, started = header.get("resumed_at"), header.get("command"), header.get("started")
    known = isinstance(at, int) and not isinstance(at, bool)
    command = shlex.join(["shadowlab", *map(str, words)]) if isinstance(words, list) and words else ""
    return Session(at if known else None, command, moment(started) if isinstance(started, str) else "")
