"""Named rules over a run's records: what a careful person would object to when reading them."""

from collections.abc import Iterable

from diagnostics.health.continuity import order_repeated, rate_off_schedule, resume_jumps
from diagnostics.health.evaluations import loss_does_not_fall, no_response
from diagnostics.health.gradients import exploding, vanishing
from diagnostics.health.inputs import input_out_of_range, layer_never_ran
from diagnostics.health.learning import dead_layer, large_updates, lost_updates, never_updated
from diagnostics.health.live import HealthWatch
from diagnostics.health.losses import loss_plateau, loss_spike
from diagnostics.health.outcome import failed_stage
from diagnostics.health.precision import headroom, nonfinite, scaler_collapse
from diagnostics.health.rule import Finding, Rule, Severity
from diagnostics.health.supply import memory_growth, repeated_data, waiting_for_data
from diagnostics.health.upkeep import ema_does_not_follow, frozen_weights_move, gradients_summed, no_step_taken
from diagnostics.records import History

RULES: tuple[Rule, ...] = (
    nonfinite,
    failed_stage,
    headroom,
    scaler_collapse,
    exploding,
    vanishing,
    no_step_taken,
    gradients_summed,
    ema_does_not_follow,
    frozen_weights_move,
    rate_off_schedule,
    resume_jumps,
    dead_layer,
    layer_never_ran,
    never_updated,
    lost_updates,
    large_updates,
    no_response,
    loss_does_not_fall,
    loss_plateau,
    loss_spike,
    input_out_of_range,
    order_repeated,
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
