"""Named rules over a run's records: what a careful person would object to when reading them."""

from collections.abc import Iterable

from diagnostics.health.evaluations import loss_does_not_fall, no_response
from diagnostics.health.gradients import exploding, vanishing
from diagnostics.health.learning import dead_layer, large_updates, lost_updates, never_updated
from diagnostics.health.live import HealthWatch
from diagnostics.health.outcome import failed_stage
from diagnostics.health.precision import headroom, nonfinite, scaler_collapse
from diagnostics.health.rule import Finding, Rule, Severity
from diagnostics.health.supply import memory_growth, repeated_data, waiting_for_data
from diagnostics.records import History

RULES: tuple[Rule, ...] = (
    nonfinite,
    failed_stage,
    headroom,
    scaler_collapse,
    exploding,
    vanishing,
    dead_layer,
    never_updated,
    lost_updates,
    large_updates,
    no_response,
    loss_does_not_fall,
    repeated_data,
    memory_growth,
    waiting_for_data,
)

__all__ = ["RULES", "Finding", "HealthWatch", "Rule", "Severity", "examine", "headroom"]


def examine(history: History, rules: Iterable[Rule] = RULES) -> list[Finding]:
    """Judge a run: what the rules find, alarms first, else in the order of the rules.

    Trends (headroom, ratios, responses, waiting) are judged at the end of the records, events (NaN, explosions,
    skips, repetition) wherever they are.
    """
    findings = [finding for one in rules for finding in one.check(history)]
    return sorted(findings, key=lambda finding: finding.severity != "alarm")
