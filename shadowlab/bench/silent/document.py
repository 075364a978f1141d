"""The corpus as tables of Markdown: `python -m shadowlab.bench.silent.document` prints those of docs/silent.md."""

import inspect
from collections.abc import Iterable, Sequence

from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.corpus import CORPUS

_HEAD = ("fault", "host", "source", "rules that may name it")


def tables() -> str:
    """Faults of each group, then healthy loops; in each row what the loop does, its source, and who may name it."""
    faults = [case for case in CORPUS if not case.healthy]
    parts = []
    for title, cases in (
        ("Faults that the authors of the rules could read", [case for case in faults if not case.held_out]),
        ("Faults that were held out", [case for case in faults if case.held_out]),
    ):
        if cases:
            parts.append(f"### {title}\n\n{_table(_HEAD, map(_row, cases))}")
    healthy = [(f"`{case.name}`: {_what(case)}", case.host, _link(case.reference)) for case in CORPUS if case.healthy]
    parts.append(f"### Healthy loops\n\n{_table(('loop', 'host', 'source'), healthy)}")
    return "\n\n".join(parts)


def _row(case: Case) -> tuple[str, str, str, str]:
    assert case.expected is not None
    rules = ", ".join(f"`{rule}`" for rule in case.expected.rules)
    return f"`{case.name}`: {_what(case)}", case.host, _link(case.reference), rules


def _what(case: Case) -> str:
    text = " ".join((inspect.getdoc(case.loop) or "").split())
    return text.replace("|", "\\|").replace("<", "&lt;")


def _link(reference: str) -> str:
    if reference.startswith("https://"):
        return f"[{reference.split('/')[2]}]({reference})"
    repository, _, number = reference.partition("#")
    return f"[{reference}](https://github.com/{repository}/issues/{number})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(tables())
