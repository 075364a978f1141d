"""What a stage leaves behind."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """Outcome of one stage.

    summary: figures for stages.json and --json. message: what to look at; empty where the stage passed.
    idle: there was nothing to do; what was recorded before stays.
    """

    stage: str
    passed: bool
    summary: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    idle: bool = False
