"""What a mutant is: one fault in a copy of this project's code, or in a copy of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True)
class DataMutant:
    """One fault in a data set of the folder layout (objects/ masks/ shadows/ metadata.json)."""

    name: str
    apply: Callable[[Path], None]
    """Changes the data set in this folder, in place; the same each time."""
    says: tuple[str, ...]
    """What a finding that knows this fault says: all of these words, in any order and case (`phi`, `180`)."""
    family: str = "data"
    is_error: bool = True
    """Training on it would be wrong; False: it may be meant, and a warning is right."""


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
