"""One incident, read from its folder: the chain, the operands, the line, what to do. A damaged one is shown in part."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostics import (
    CAUSES,
    EXCEPTIONS,
    PHASES,
    Verdict,
    nearby,
    number_text,
    read_verdict,
    read_verdict_file,
)
from diagnostics.files import is_inside, read_json
from diagnostics.incidents import SourceExcerpt
from shadowlab.runs import Remedy
from shadowlab.views.page.why_answers import WhyAnswers
from shadowlab.views.page.wording import size

_FILES = {
    "verdict.json": "the verdict for machines",
    "verdict.txt": "the verdict for people",
    "source.json": "the lines around the verdict's, as they were then",
    "layers.json": "statistics of every layer, as far as the repeated step came",
    "remedy.json": "the command with the change in it, and what had warned of it",
    "why.json": "what `shadowlab why` answered",
    "environment.json": "versions and settings that change numerics",
    "config.yaml": "the run's configuration",
    "step.json": "which step it was, for `shadowlab why`",
    "batch.pt": "the batch",
    "randomness.pt": "generator states before the step",
    "operator.pt": "the operator's operands",
    "repro.py": "runs the operator alone, with torch and nothing else",
    "state": "weights and optimizer states before the step",
}

_HERE = Path()
"""The folder below which alone sources are read: what a verdict names may be any file of this machine."""
_NO_LINES = (
    "Its lines were not kept at the incident, and it is no Python source below the current folder that has this line."
)


@dataclass(frozen=True)
class Operand:
    """What the operator of the birth was given at the first bad element."""

    name: str
    value: str
    note: str = ""
    """What is special about the value in this dtype."""


@dataclass(frozen=True)
class IncidentStory:
    """What the page shows of one incident."""

    folder: Path
    verdict: Verdict | None
    """None where none could be read."""
    problems: tuple[str, ...] = ()
    """What could not be read."""
    excerpt: SourceExcerpt | None = None
    """The lines around the verdict's source."""
    excerpt_note: str = ""
    """Of which time they are."""
    environment: dict[str, Any] = field(default_factory=dict)
    files: tuple[tuple[str, str, str], ...] = ()
    """Name, size, what it is."""
    remedy: Remedy = field(default_factory=Remedy)
    """What to type, and what had warned of it; empty for incidents that have none."""
    answers: WhyAnswers | None = None
    """What `shadowlab why` found; None where it was not asked."""

    @classmethod
    def read(cls, folder: Path, recorded: Mapping[str, Any] | None = None) -> "IncidentStory":
        """Of an incident folder.

        Args:
            recorded: the verdict in metrics.jsonl, taken where the folder's own is gone or damaged.
        """
        problems: list[str] = []
        verdict = _read_verdict(folder / "verdict.json", recorded, problems)
        excerpt, note = _excerpt(folder, verdict, problems)
        environment: Any = _read_json(folder / "environment.json", problems)
        answers = WhyAnswers.read(folder, problems)
        return cls(
            folder,
            verdict,
            tuple(problems),
            excerpt,
            note,
            environment if isinstance(environment, dict) else {},
            tuple(_listing(folder)),
            Remedy.read(folder),
            answers,
        )

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def headline(self) -> str:
        return self.verdict.headline() if self.verdict is not None else f"{self.name}: the verdict cannot be read"

    @property
    def chain(self) -> list[tuple[str, str]]:
        """(operator, role) from birth to sink; roles are birth, way, gap and sink."""
        assert self.verdict is not None
        last = len(self.verdict.path) - 1
        roles = ["birth" if i == 0 else "sink" if i == last else "way" for i in range(last + 1)]
        return [
            (name, "gap" if name.startswith("(") and name.endswith(" more)") else role)
            for name, role in zip(self.verdict.path, roles, strict=True)
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What is known of the birth, in words."""
        assert self.verdict is not None
        v = self.verdict
        replayed = {None: "no", True: "yes, the same step gave it again", False: "yes, but the same step was finite"}
        ids = f" ({', '.join(v.sample_ids)})" if v.sample_ids else ""
        module = None if v.module is None else v.module or "the model itself, outside its children"
        found = [
            ("Module", module),
            ("Parameter" if v.op else "Tensor", v.parameter),
            ("Phase", f"{v.phase}: {PHASES.get(v.phase, '')}"),
            ("Floating-point event", None if v.exception is None else EXCEPTIONS.get(v.exception, v.exception)),
            ("Cause", f"{v.cause}: {CAUSES.get(v.cause, '')}"),
            ("Samples", ", ".join(map(str, v.samples)) + ids if v.samples else None),
            ("Rank", None if v.rank is None else str(v.rank)),
            ("Repeated", replayed[v.reproducible]),
        ]
        return [(label, text.removesuffix(": ")) for label, text in found if text]

    @property
    def operands(self) -> list[Operand]:
        if self.verdict is None:
            return []
        witness = self.verdict.witness
        limits = witness.get("limits", {})
        return [
            _operand(self.verdict.operand_label(name), value, limits)
            for name, value in witness.get("operands", {}).items()
        ]

    @property
    def expression(self) -> tuple[str, str] | None:
        """The code that issued the operator, and its `path:line`; None where they are not known."""
        witness = self.verdict.witness if self.verdict else {}
        text, place = witness.get("expression"), witness.get("expression_at")
        return (text, _place(place)) if isinstance(text, str) and isinstance(place, str) else None

    @property
    def source(self) -> str:
        """`path:line`, short where it lies below the current folder."""
        return _place(self.verdict.source) if self.verdict and self.verdict.source else ""

    @property
    def source_lines(self) -> list[tuple[int, str, bool]]:
        """(number, text, whether it is the one) of the excerpt."""
        if self.excerpt is None:
            return []
        first, marked = self.excerpt.first, self.excerpt.line
        return [(first + i, text, first + i == marked) for i, text in enumerate(self.excerpt.lines)]

    @property
    def fix(self) -> str:
        return self.verdict.fix if self.verdict else ""

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(command, what it does), for the files that are there."""
        there = {name for name, _, _ in self.files}
        place = shlex.quote(str(self.folder))
        found = []
        if "verdict.json" in there:
            what = "repeats the step with one thing changed at a time, and says what would have helped"
            what += "; the table above is its last answer" if self.answers is not None else ""
            if "step.json" not in there:
                what = "prints the verdict; the step itself was not captured"
            found.append((f"shadowlab why {place}", what))
        if {"repro.py", "operator.pt"} <= there:
            what = "runs this one operator on the operands it had; needs torch alone, exit code 0: it happens again"
            found.append((f"python {place}/repro.py", what))
        return found


def _read_verdict(file: Path, recorded: Mapping[str, Any] | None, problems: list[str]) -> Verdict | None:
    try:
        return read_verdict_file(file)
    except ValueError as error:
        trouble = str(error)
    if recorded is None:
        problems.append(trouble)
        return None
    verdict = read_verdict(recorded)
    source = (
        "what metrics.jsonl says of it is damaged, too" if verdict is None else "what follows is from metrics.jsonl"
    )
    problems.append(f"{trouble}; {source}")
    return verdict


def _excerpt(folder: Path, verdict: Verdict | None, problems: list[str]) -> tuple[SourceExcerpt | None, str]:
    """The lines around the verdict's source, and what to know of them."""
    if verdict is None or not verdict.source:
        return None, ""
    file = folder / "source.json"
    if file.is_file():
        try:
            excerpt = SourceExcerpt.from_json(read_json(file, inside=folder))
        except (OSError, ValueError) as error:
            problems.append(f"{file}: {error}; the lines are read from the source file as it is now")
        else:
            note = "As it was at the incident."
            if not excerpt.is_older:
                note = "As it was at the incident; but the file had been written to after the run began, so that lines "
                note += "may have moved."
            now = {
                True: "",
                False: " The file has changed since.",
                None: " The file is not below the current folder now.",
            }
            return excerpt, note + now[excerpt.is_unchanged(_HERE)]
    place = folder / "verdict.json"
    written = place.stat().st_mtime if place.is_file() else math.inf
    now_there = SourceExcerpt.read(verdict.source, loaded=written, below=_HERE)
    if now_there is None:
        return None, _NO_LINES
    note = "As the file is now; its lines were not kept at the incident."
    if not now_there.is_older:
        note += " It was changed after the incident: lines may have moved."
    return now_there, note


def _read_json(file: Path, problems: list[str]) -> Any:
    if not file.is_file():
        return {}
    try:
        return read_json(file, inside=file.parent)
    except (OSError, ValueError) as error:
        problems.append(f"{file}: cannot be read ({type(error).__name__})")
        return {}


def _listing(folder: Path) -> list[tuple[str, str, str]]:
    if not folder.is_dir():
        return []
    found = []
    for item in sorted(folder.iterdir()):
        if not is_inside(item, folder):
            continue
        parts = [item] if item.is_file() else [part for part in item.rglob("*") if part.is_file()]
        found.append((item.name, size(sum(part.lstat().st_size for part in parts)), _FILES.get(item.name, "")))
    return found


def _operand(name: str, value: Any, limits: Mapping[str, Any]) -> Operand:
    note = ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        magnitude = abs(value)
        smallest, largest = limits.get("smallest_normal"), limits.get("max")
        if not math.isfinite(magnitude):
            note = "not finite"
        elif magnitude == 0:
            note = "zero"
        elif isinstance(largest, int | float) and magnitude > largest:
            note = "beyond the largest finite number"
        elif isinstance(smallest, int | float) and magnitude < smallest:
            note = "below the smallest normal number"
    elif value in ("nan", "inf", "-inf"):
        note = "not finite"
    return Operand(name, number_text(value), note)


def _place(place: str) -> str:
    """`path:line`, short where it lies below the current folder or in an installed package: pages are passed on."""
    return nearby(place).rpartition("site-packages/")[2]
