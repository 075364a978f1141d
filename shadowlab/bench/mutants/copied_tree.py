"""A copy of this project's code, in which one fault is put and taken back at a time."""

import compileall
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import shadowlab
from diagnostics.files import read_text, replace_text
from shadowlab.bench.mutants.mutant import PACKAGES, CodeMutant, Edit, mutated
from shadowlab.errors import MissingDependencyError

PROJECT = Path(shadowlab.__file__).parent.parent


class CopiedTree:
    """The packages below `root`, compiled once: a process that imports from here compiles the mutated file alone."""

    def __init__(self, root: Path) -> None:
        """Copy.

        Raises:
            MissingDependencyError: this installation has no source tree with `cli` and `configs` in it.
        """
        self.root = root
        for name in PACKAGES:
            if not (PROJECT / name).is_dir():
                raise MissingDependencyError(
                    f"{PROJECT / name} is missing; mutants need the source tree of the project"
                )
            shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(root, quiet=2)

    @contextmanager
    def with_fault(self, mutant: CodeMutant) -> Iterator[None]:
        """Inside, the copy has this fault; afterwards it is as before, whatever happened.

        Raises:
            UserError: the code is not what the mutant was written for.
        """
        files = sorted({edit.file for edit in mutant.edits})
        before = {name: read_text(self.root / name) for name in files}
        after = mutated_sources(mutant, before)
        try:
            for name, text in after.items():
                self._write(name, text)
            yield
        finally:
            for name, text in before.items():
                self._write(name, text)

    def _write(self, name: str, text: str) -> None:
        """Without compiled code: that of the other text could have the same size and the same second."""
        path = self.root / name
        replace_text(path, text)
        if path.suffix == ".py":
            Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def mutated_sources(mutant: CodeMutant, sources: dict[str, str]) -> dict[str, str]:
    """File -> its text with the fault. sources: file -> its text. Raises UserError as `mutated`."""
    by_file: dict[str, list[Edit]] = {}
    for edit in mutant.edits:
        by_file.setdefault(edit.file, []).append(edit)
    return {name: mutated(sources[name], tuple(edits), mutant.name) for name, edits in by_file.items()}
