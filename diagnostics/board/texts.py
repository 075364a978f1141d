"""Records that are words, as Markdown for TensorBoard's Text page: incidents, health, verdicts of stages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diagnostics.records import encode
from diagnostics.verdict import Verdict, read_verdict


def text_of(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """Tag and Markdown of a record; None for records that are numbers, and for words with nothing to show."""
    kind = record.get("kind")
    if kind == "incident":
        return "incident", _incident(read_verdict(record.get("verdict")))
    if kind == "health" and record.get("findings"):
        return "health", _health(record["findings"])
    if kind == "stage":
        return f"stage/{record.get('stage', '')}", _stage(record)
    return None


def _incident(verdict: Verdict | None) -> str:
    if verdict is None:
        return "### an incident whose verdict cannot be read"
    chain = " → ".join(map(_code, verdict.path))
    lines = [f"- **{label}**: {_cell(text)}" for label, text in verdict.details() if label != "path"]
    if chain:
        lines.insert(0, f"- **birth → sink**: {chain}")
    return f"### {_cell(verdict.headline())}\n\n" + "\n".join(lines)


def _health(findings: Sequence[Mapping[str, Any]]) -> str:
    columns = ("severity", "rule", "where", "part", "step", "evidence", "advice")
    rows = ({**finding, "where": finding.get("layer") or finding.get("parameter")} for finding in findings)
    return _table(columns, ([_words(row.get(column)) for column in columns] for row in rows))


def _stage(record: Mapping[str, Any]) -> str:
    outcome = "passed" if record.get("passed") else "**failed**"
    parts = [f"### {_cell(str(record.get('stage', '')))}: {outcome}"]
    if record.get("message"):
        parts.append("    " + str(record["message"]).replace("\n", "\n    "))  # as printed
    summary = record.get("summary") or {}
    if summary:
        parts.append(_table(("figure", "value"), ((_code(key), _words(value)) for key, value in summary.items())))
    return "\n\n".join(parts)


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return _cell(value if isinstance(value, str) else json.dumps(encode(value)))


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _cell(text: str) -> str:
    """One line of a table: names keep their underscores, a bar does not end the cell."""
    for mark in ("\\", "|", "_", "*", "`", "<", "["):
        text = text.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return " ".join(text.split())
