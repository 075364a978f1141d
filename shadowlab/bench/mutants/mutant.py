"""What a mutant is: one fault in a copy of this project's code, or in a copy of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from shadowlab.errors import UserError

Stage = Literal["check-forward", "data check", "overfit", "train"]
"""In the order in which a user meets them; `train` is a short run, its resume, and `health` of both."""

STAGES: tuple[Stage, ...] = ("check-forward", "data check", "overfit", "train")

PACKAGES = ("shadowlab", "diagnostics", "cli", "configs")
"""Folders of the project that are copied."""


@dataclass(frozen=True)
class Edit:
    """One replacement of text."""

    file: str
    """Relative to the project: `shadowlab/training/step.py`."""
    old: str
    """Occurs exactly once in the file."""
    new: str


@dataclass(frozen=True)
class CodeMutant:
    """One silent fault in the code: it raises nothing and every number stays finite."""

    name: str
    function: str
    """Where the fault is, with its class if it has one: `Batch.select`. It lies in the file of the first edit."""
    edits: tuple[Edit, ...]
    stages: tuple[Stage, ...]
    """Those that could know."""
    options: tuple[str, ...] = ()
    """Words of the command line with which the fault has an effect: `--precision bf16`."""
    train_options: tuple[str, ...] = ()
    """More of them, for `train` alone: `--processes 2`."""
    also: tuple[str, ...] = ()
    """Other right answers to where it is, such as its only caller: `file.py function`."""
    says: tuple[str, ...] = ()
    """Words of which a stage that knows no code says one when it names the thing that is wrong: `mask`, `EMA`."""

    @property
    def file(self) -> str:
        return self.edits[0].file

    @property
    def place(self) -> str:
        """`shadowlab/training/step.py, _step`."""
        return f"{self.file}, {self.function}"


class DataMutant(Protocol):
    """One fault in a data set of the folder layout (objects/ masks/ shadows/ metadata.json)."""

    @property
    def name(self) -> str: ...

    @property
    def make(self) -> Callable[[Path, Path], None]:
        """(folder to read, folder to make): a faulty copy, the same bytes each time."""

    @property
    def said(self) -> str:
        """Regular expression: a line of the check that names the fault, with the conversion where there is one."""

    @property
    def is_error(self) -> bool:
        """Training on it would be wrong; False: it may be meant, and a warning is right."""


def mutant(
    name: str,
    place: str,
    old: str,
    new: str,
    *,
    more: tuple[Edit, ...] = (),
    stages: tuple[Stage, ...] = ("check-forward", "overfit", "train"),
    options: str = "",
    train_options: str = "",
    also: tuple[str, ...] = (),
    says: tuple[str, ...] = (),
) -> CodeMutant:
    """A mutant whose first edit is in the function that `place` names: `shadowlab/training/step.py _step`.

    options, train_options: words, separated by spaces. The rest as in `CodeMutant`; more: further edits.
    """
    file, function = place.split()
    edits = (Edit(file, old, new), *more)
    return CodeMutant(
        name, function, edits, stages, tuple(options.split()), tuple(train_options.split()), also=also, says=says
    )


def mutated(source: str, edits: tuple[Edit, ...], name: str) -> str:
    """The text of a file with the edits made.

    Raises:
        UserError: what an edit replaces is not there exactly once; names the mutant.
    """
    for edit in edits:
        count = source.count(edit.old)
        if count != 1:
            raise UserError(
                f"mutant {name}: {edit.file} has {edit.old.strip()[:80]!r} {count} times, not once; "
                "the code has changed: correct the mutant"
            )
        source = source.replace(edit.old, edit.new)
    return source
