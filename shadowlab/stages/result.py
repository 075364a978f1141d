"""What a stage leaves behind."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """Outcome of one stage."""

    stage: str
    passed: bool
    summary: dict[str, Any] = field(default_factory=dict)
    """Figures for stages.json and --json."""
    message: str = ""
    """What to look at; empty where the stage passed."""
    idle: bool = False
    """There was nothing to do; what was recorded before stays."""
