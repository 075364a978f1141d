"""Which place a stage names, and whether it is the right one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shadowlab.bench.mutants.mutant import CodeMutant

# `training/step.py, _step`, `step.py:12, Trainee.update`, `File "/x/step.py", line 12, in _step`
_PLACE = re.compile(
    r"(?P<file>[\w./-]+\.py)[\"']?(?::\d+)?(?:,? line \d+)?(?:[,:]\s+(?:in )?|\s+in )`?(?P<function>[A-Za-z_][\w.]*)"
)


def places_in(text: str) -> list[tuple[str, str]]:
    """(file, function) as they are named, in their order, each once."""
    found = [(match["file"], match["function"].rstrip(".")) for match in _PLACE.finditer(text)]
    return list(dict.fromkeys(found))


def is_right(place: tuple[str, str], mutant: CodeMutant) -> bool:
    """Whether it is where the fault is, or one of the other right answers."""
    wanted = [(mutant.file, mutant.function), *(tuple(one.split()) for one in mutant.also)]
    return any(_same_file(place[0], file) and _same_function(place[1], function) for file, function in wanted)


def is_in_file(place: tuple[str, str], mutant: CodeMutant) -> bool:
    """Whether its file is the one that was changed, or another right answer."""
    return any(_same_file(place[0], file) for file in (mutant.file, *(one.split()[0] for one in mutant.also)))


def names_the_thing(text: str, mutant: CodeMutant) -> bool:
    """Whether a word of a text, of a stage that knows no code, begins with one of the mutant's."""
    return any(re.search(rf"(?<![\w]){re.escape(word)}", text, re.IGNORECASE) for word in mutant.says)


def failed_checks(document: Mapping[str, Any] | None) -> Iterator[str]:
    """Of check-forward's document: name, what was seen and the advice of each check that failed, in their order."""
    checks = (document or {}).get("checks")
    for check in checks if isinstance(checks, list) else []:
        if not check.get("passed", True) and not check.get("tolerated", False):
            yield " ; ".join(str(check.get(key, "")) for key in ("name", "seen", "mend"))


def blamed(texts: Iterable[str]) -> list[tuple[str, str]]:
    """The places of the first text that names any."""
    return next((places for text in texts if (places := places_in(text))), [])


def _same_file(named: str, wanted: str) -> bool:
    named = named.removeprefix("./")
    return named == wanted or wanted.endswith(f"/{named}") or named.endswith(f"/{wanted}")


def _same_function(named: str, wanted: str) -> bool:
    return named.rpartition(".")[2] == wanted.rpartition(".")[2]
