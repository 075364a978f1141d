"""What of a run is saved: said wherever it ends early. Judges names and markers alone, in no time."""

import re
from pathlib import Path

_STEP = re.compile(r"step-[0-9]{8,18}")  # the name of a checkpoint; a copy or notes have another


def marked_complete(checkpoints: Path) -> list[Path]:
    """Markers of the folders that are checkpoints by their names; copies next to them do not count.

    Raises:
        OSError: the folder cannot be looked at.
    """
    return [marker for marker in checkpoints.glob("step-*/COMPLETE") if _STEP.fullmatch(marker.parent.name)]


def resume_point(checkpoints: Path) -> str:
    """`step 40 is saved (step-00000040), a resume starts there`.

    Args:
        checkpoints: the folder of a run's checkpoints; it need not exist.
    """
    try:
        marked = [marker.parent.name for marker in marked_complete(checkpoints)]
    except OSError:
        marked = []
    newest = max(marked, key=lambda name: int(name[5:]), default=None)
    if newest is None:
        return "nothing is saved yet, a resume starts at step 0"
    return f"step {int(newest[5:])} is saved ({newest}), a resume starts there"
