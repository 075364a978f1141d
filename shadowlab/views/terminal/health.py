"""health: what the rules object to in a run's records."""

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from diagnostics.health import RULES, Finding, Rule, examine
from shadowlab.console import Column, FittedTable, Reporter
from shadowlab.errors import UserError
from shadowlab.plain_text import counted
from shadowlab.runs import read_history

_MAX_ROWS = 8  # of one rule in the table; --json has all
_STYLES = {"alarm": "red", "warning": "yellow"}


def find_rules(names: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of these names, or all of them where none is given.

    Raises:
        UserError: an unknown name.
    """
    known = [rule.name for rule in RULES]
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: no such rule; there are {', '.join(known)}")
    return tuple(rule for rule in RULES if not names or rule.name in names)


def list_rules(rules: Sequence[Rule], reporter: Reporter) -> None:
    """Names, thresholds and sources."""
    for rule in rules:
        reporter.say(f"{rule.name}{' (also while training)' if rule.live else ''}", style="bold")
        reporter.say(f"  when    {rule.threshold}")
        reporter.say(f"  why     {' '.join(rule.why.split())}")
        reporter.say(f"  source  {rule.source}")
    reporter.result({"rules": [rule.to_json() for rule in rules]})


def run_health(metrics: Path, rules: Sequence[Rule], reporter: Reporter) -> bool:
    """Print what `rules` find. Returns whether there is no alarm.

    Raises:
        UserError: the records cannot be read, or hold nothing that could be judged.
    """
    history = read_history(metrics)
    if not set(history.kinds) - {"health"}:
        raise UserError(f"{metrics}: no step, evaluation, incident or stage is recorded: there is nothing to judge")
    findings = examine(history, rules)
    num_evaluations = sum(history.count(kind) for kind in history.evaluations)
    num_measured = int(history.has_layers.sum())
    reporter.say(
        f"{metrics}: {counted(history.count(), f'{history.kind} step')}, {num_measured} with statistics, "
        f"{counted(num_evaluations, 'evaluation')}"
    )
    if findings:
        reporter.table(_table(findings))
    if history.records("incident"):
        reporter.say(f"what would have helped: shadowlab why {metrics.parent}")
    alarms = sum(finding.severity == "alarm" for finding in findings)
    warnings = len(findings) - alarms
    found = f"{counted(alarms, 'alarm')}, {counted(warnings, 'warning')}" if findings else "nothing found"
    style = "red" if alarms else "yellow" if warnings else "green"
    reporter.say(f"{counted(len(rules), 'rule')}: {found}", style=style)
    reporter.result(
        {
            "run": str(metrics.parent),
            "passed": not alarms,
            "kind": history.kind,
            "last_step": history.last_step,
            "num_steps": history.count(),
            "num_measured": num_measured,
            "num_evaluations": num_evaluations,
            "rules": [rule.name for rule in rules],
            "findings": [finding.to_json() for finding in findings],
        }
    )
    return not alarms


def _table(findings: Sequence[Finding]) -> FittedTable:
    table = FittedTable(
        (
            Column("", is_head=True),
            Column("rule", is_head=True),
            Column("step"),
            Column("where"),
            Column("what was seen", wraps=True),
            Column("what to do", wraps=True),
        )
    )
    shown: dict[tuple[str, str], int] = {}
    for finding in findings:
        key = (finding.severity, finding.rule)
        shown[key] = shown.get(key, 0) + 1
        if shown[key] > _MAX_ROWS:
            continue
        step = "" if finding.step is None else str(finding.step)
        severity = Text(finding.severity, _STYLES[finding.severity])
        table.add_row(severity, finding.rule, step, finding.place, finding.evidence, finding.advice)
    for (severity_, rule), count in shown.items():
        if count > _MAX_ROWS:
            more = f"and in {count - _MAX_ROWS} more places; --json lists all"
            table.add_row(Text(severity_, _STYLES[severity_]), rule, "", "", more, "")
    return table
