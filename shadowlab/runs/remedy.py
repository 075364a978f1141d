"""What to type after a verdict, and what an earlier stage had warned of: remedy.json of an incident.

incidents/step-00000412/remedy.json
    command   the command that failed, with the change in it: `shadowlab train --preset sdxl --precision bf16`; null
              where no command of this harness is known
    change    the change alone: `--precision bf16`
    why       in a sentence
    warned    list of {stage, run, text}: what check-forward had said of this model, without failing
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diagnostics import Verdict
from diagnostics.files import read_json, replace_text
from shadowlab.errors import UserError
from shadowlab.runs.folder import RunFolder
from shadowlab.runs.lookup import stage_passed
from shadowlab.settings import Config

_STAGES = ("train", "overfit")
_LEAST_EPS = 1e-8
_LEAST_FLOAT32 = 2.0**-149  # positive number of float32
_WARNS = "check-forward"


@dataclass(frozen=True)
class Warned:
    """A warning that came before the incident."""

    stage: str
    run: str
    """Folder of the run that warned."""
    text: str


@dataclass(frozen=True)
class Remedy:
    """What remedy.json holds; see the module."""

    command: str | None = None
    change: str | None = None
    """None where nothing is known to help."""
    why: str = ""
    warned: tuple[Warned, ...] = ()

    @classmethod
    def read(cls, incident: Path) -> "Remedy":
        """Empty where the incident has none, as older ones, or it is damaged."""
        try:
            content = read_json(incident / "remedy.json", inside=incident)
            warned = tuple(Warned(**{key: str(value) for key, value in one.items()}) for one in content.pop("warned"))
            texts = {key: None if value is None else str(value) for key, value in content.items()}
            return cls(**{**texts, "why": texts["why"] or ""}, warned=warned)  # type: ignore[arg-type]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()


def write_remedy(incident: Path, verdict: Verdict, run: RunFolder, words: Sequence[str] | None = None) -> Remedy:
    """Write remedy.json next to a verdict.

    Args:
        words: what was typed after `shadowlab`; None: what this process was started with.

    Raises:
        OSError: the disk refuses.
        UserError: the run's config.yaml cannot be read.
    """
    config = run.saved_config()
    change, why = _change(verdict, config)
    typed = sys.argv[1:] if words is None else words
    command = None if change is None else _command(change, typed)
    remedy = Remedy(command, change, why, _warned(config))
    replace_text(incident / "remedy.json", json.dumps(asdict(remedy), indent=2) + "\n")
    return remedy


def _change(verdict: Verdict, config: Config) -> tuple[str | None, str]:
    """Option and reason; None where no option is known to help."""
    if verdict.phase == "optimizer" and verdict.cause == "underflow" and config.optimizer.eps < _LEAST_FLOAT32:
        return f"--set optimizer.eps={_LEAST_EPS:g}", "the eps of the run is zero in float32, too: no precision helps"
    is_half = config.precision in ("fp16", "fp16-pure") and verdict.witness.get("dtype") == "float16"
    if is_half and verdict.cause in ("underflow", "overflow"):
        return "--precision bf16", "bfloat16 has float32's range, and the weights and optimizer states stay in float32"
    if verdict.phase == "optimizer" and verdict.exception is not None and config.optimizer.eps < _LEAST_EPS:
        return f"--set optimizer.eps={_LEAST_EPS:g}", "an eps that float32 can add to the root of a small square"
    if verdict.phase == "data" and config.data.path != Config().data.path:
        return f"shadowlab data check {shlex.quote(config.data.path)}", "it names each sample that cannot be trained on"
    return None, ""


def _command(change: str, typed: Sequence[str]) -> str | None:
    """What was typed, with an option in the place of those that it replaces, and a run of its own."""
    if change.startswith("shadowlab "):
        return change
    if not typed or typed[0] not in _STAGES:
        return None
    option, value = change.split(" ", 1)
    key = value.partition("=")[0] if option == "--set" else option.removeprefix("--")
    kept: list[str] = []
    words = list(typed)
    while words:
        word = words.pop(0)
        name, has_value, given = word.partition("=")
        takes = name in ("--precision", "--set", "--run") and not has_value
        given = words.pop(0) if takes and words else given
        if name in ("--allow-unsafe", "--resume") or name == option != "--set":
            continue
        if name == "--set" and given.partition("=")[0] in (key, "allow_unsafe"):
            continue
        if name == "--run":
            kept += ["--run", f"{Path(given).name}-{value.rpartition('=')[2]}"]
        else:
            kept += [name, given] if takes else [word]
    return f"{shlex.join(['shadowlab', *kept])} {change}"


def _warned(config: Config) -> tuple[Warned, ...]:
    try:
        place = stage_passed(config, _WARNS, as_strict=lambda *_: True, on_unreadable=lambda reason: None)
        found: Any = None if place is None else RunFolder(place).stages()[_WARNS]["summary"].get("checks")
    except (UserError, OSError):  # what another run's files say is of no weight here
        return ()
    return tuple(
        Warned(_WARNS, str(place), f"{check.get('seen')}; {check.get('mend')}")
        for check in (found if isinstance(found, list) else [])
        if isinstance(check, dict) and check.get("tolerated") and not check.get("passed")
    )
