"""Each rule speaks where it must, names the place and the numbers, and is silent on a healthy run of any length."""

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from diagnostics.health import RULES, Finding, HealthWatch, examine
from diagnostics.health.live import LIVE_RULES
from diagnostics.records.history import History
from diagnostics.records.lines import decode, encode
from diagnostics.verdict import Verdict

Record = dict[str, Any]
LAYERS = [f"block.{i}.conv" for i in range(10)]
NUM_SAMPLES, BATCH, EVERY = 20, 6, 2


def statistics(max_abs: float, *, limit: float = 65504.0) -> dict[str, float]:
    return {
        "norm": max_abs * 10,
        "mean": 0.0,
        "std": max_abs / 3,
        "max_abs": max_abs,
        "fraction_zero": float(max_abs == 0),
        "num_nonfinite": 0,
        "headroom_bits": math.log2(limit / max_abs) if max_abs else math.inf,
    }


def shuffled(length: int, rng: random.Random) -> list[int]:
    return rng.sample(range(length), length)


def healthy(num_steps: int, *, kind: str = "train", seed: int = 0, every: int = EVERY) -> list[Record]:
    """A float16 run under a scaler: warm-up, steps skipped at its start, a last layer that begins at zero, one spike
    of the gradient, memory that settles, one slow read."""
    rng = random.Random(seed)
    records: list[Record] = [{"kind": "header", "stage": kind, "num_samples": NUM_SAMPLES}]
    evaluations = "validation" if kind == "train" else "fixed_grid"
    stream: list[int] = []
    scale = 2.0**16
    for step in range(num_steps + 1):
        loss = 1.0 / (1 + step / 50)
        if step % 20 == 0:
            responses = {f"response_{name}": 0.03 * rng.uniform(0.5, 1) * (step > 0) for name in ("theta", "phi")}
            records.append({"kind": evaluations, "step": step, "loss": loss, "r2": -math.inf, **responses})
        if step == 0:
            continue
        while len(stream) < BATCH:
            stream += shuffled(NUM_SAMPLES, rng)
        skipped = step <= 3
        norm = 2.0 * loss * rng.uniform(0.7, 1.5) * (40 if step == 30 else 1)
        record: Record = {
            "kind": kind,
            "step": step,
            "loss": loss * rng.uniform(0.8, 1.2),
            "grad_norm": math.inf if skipped else norm,
            "learning_rate": 1e-3 * min(1.0, step / 20),
            "samples": [f"s{i}" for i in stream[:BATCH]],
            "skipped": skipped,
            "num_skipped": min(step, 3),
            "memory_gib": 0.5 + 0.1 * (1 - math.exp(-step / 30)) + rng.uniform(0, 0.01),
            "data_wait_share": 0.9 if step % 10 == 1 else rng.uniform(0, 0.15),
        }
        del stream[:BATCH]
        if step == 1 or step % every == 0:
            zero = step == 1  # the last layer is zero-initialised: nothing goes out of it, nothing passes it backwards
            record["loss_scale"] = scale
            record["layers"] = {
                name: {
                    "activation": statistics(0.0 if zero and name == LAYERS[-1] else 8.0 * rng.uniform(0.9, 1.1)),
                    "gradient": statistics(
                        0.0 if zero and name != LAYERS[-1] else scale * 1e-3 * loss * rng.uniform(0.3, 1)
                    ),
                }
                for name in LAYERS
            }
            if skipped:
                record["layers"][LAYERS[2]]["gradient"] |= {"num_nonfinite": 4, "headroom_bits": -math.inf}
            record["layers"]["mask"] = {
                "activation": statistics(1.0) | {"num_nonfinite": 9, "headroom_bits": -math.inf}
            }
            record["parameters"] = {
                f"{name}.{part}": {
                    "gradient_norm": norm * rng.random(),
                    "update_ratio": None
                    if skipped or (zero and part == "bias")
                    else 2.0 / step
                    if part == "bias"
                    else 2e-3,
                }
                for name in LAYERS
                for part in ("weight", "bias")
            }
        if skipped:
            scale /= 2
        records.append(record)
    return records


def found(records: list[Record], **named: Any) -> list[Finding]:
    findings = examine(History(records, **named))
    for finding in findings:
        json.dumps(encode(finding.to_json()), allow_nan=False)
    return findings


def only(findings: list[Finding], rule: str) -> Finding:
    """The one finding, which is of this rule."""
    assert [finding.rule for finding in findings] == [rule], [str(finding) for finding in findings]
    return findings[0]


def trained(records: list[Record], *, after: int = 0) -> list[Record]:
    return [record for record in records if record["kind"] in ("train", "overfit") and record["step"] > after]


def measured(records: list[Record], *, after: int = 0) -> list[Record]:
    return [record for record in trained(records, after=after) if "layers" in record]


# --- healthy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5, 10, 24, 60, 300])
@pytest.mark.parametrize("kind", ["train", "overfit"])
def test_a_healthy_run_is_silent_at_every_length(num_steps: int, kind: str) -> None:
    for seed in range(3):
        assert [str(finding) for finding in found(healthy(num_steps, kind=kind, seed=seed))] == []


@pytest.mark.parametrize(("num_steps", "every"), [(560, EVERY), (1000, 50)])
def test_a_healthy_run_is_silent_while_it_goes_on(num_steps: int, every: int) -> None:
    """Statistics every 50 steps: the window of columns is longer than that of steps, and begins with a skipped one."""
    watch = HealthWatch("train")
    reported = [finding for record in trained(healthy(num_steps, every=every)) for finding in watch.add(record)]
    assert [str(finding) for finding in reported] == []


def test_no_records_at_all() -> None:
    assert found([]) == []
    assert found([{"kind": "validation", "step": 0, "loss": 1.0}]) == []


# --- precision ----------------------------------------------------------------------------------------------------


def grow(records: list[Record], layer: str, part: str, bits_now: float, bits_a_step: float) -> None:
    """Headroom of a layer falls on a line that reaches `bits_now` at the last record."""
    last = measured(records)[-1]["step"]
    for record in measured(records):
        bits = bits_now + bits_a_step * (last - record["step"])
        if part == "gradient":
            bits -= math.log2(record["loss_scale"])
        record["layers"][layer][part] = statistics(65504.0 / 2**bits)


@pytest.mark.parametrize("part", ["activation", "gradient"])
@pytest.mark.parametrize(("bits", "severity"), [(2.0, "warning"), (0.5, "alarm")])
def test_falling_headroom_predicts_the_step(part: str, bits: float, severity: str) -> None:
    records = healthy(60)
    grow(records, LAYERS[4], part, bits, 0.1)
    finding = only(found(records), "headroom")
    assert (finding.layer, finding.severity, finding.step) == (LAYERS[4], severity, 60)
    assert finding.predicted_step == 60 + round(bits * 10)
    assert part in finding.evidence and f"step {finding.predicted_step}" in finding.evidence


@pytest.mark.parametrize(("bits", "bits_a_step"), [(2.0, 0.0), (2.0, -0.1), (3.2, 0.1), (100.0, 1.0)])
def test_headroom_that_is_small_and_stays_or_large_and_falls_is_left_alone(bits: float, bits_a_step: float) -> None:
    records = healthy(60)
    grow(records, LAYERS[4], "activation", bits, bits_a_step)
    assert found(records) == []


def test_noise_is_no_trend() -> None:
    records, rng = healthy(120), random.Random(1)
    for record in measured(records):
        record["layers"][LAYERS[4]]["activation"] = statistics(65504.0 / 2 ** rng.uniform(1.5, 2.5))
    assert found(records) == []


def test_the_scaler_works_at_the_end_of_its_range() -> None:
    """Its scale doubles until gradients overflow: the headroom of scaled gradients falls to 0 by design."""
    records = healthy(60)
    for number, record in enumerate(measured(records)):
        record["loss_scale"] = 2.0 ** (10 + number / 2)
        record["layers"][LAYERS[4]]["gradient"] = statistics(2.0 ** (number / 2))
    assert found(records) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["loss", "grad_norm"])
def test_what_is_not_finite_is_never_healthy(key: str, value: float) -> None:
    records = healthy(60)
    trained(records)[40][key] = value
    finding = only(found(records), "non-finite")
    assert (finding.severity, finding.step) == ("alarm", 41) and key in finding.evidence


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    """Forward: the first in the order of execution. Backward: the last."""
    records = healthy(60)
    for part, steps, layers in (("activation", 30, LAYERS[3:7]), ("gradient", 40, LAYERS[:6])):
        for record in measured(records, after=steps):
            for name in layers:
                record["layers"][name][part] |= {"num_nonfinite": 5, "headroom_bits": math.nan, "max_abs": math.inf}
    findings = found(records)
    assert [(f.rule, f.layer, f.step) for f in findings] == [
        ("non-finite", LAYERS[3], 32),
        ("non-finite", LAYERS[5], 42),
    ]
    assert "3 layers after it" in findings[0].evidence


def test_an_evaluation_and_an_incident_count() -> None:
    records = healthy(40)
    records[-1 if records[-1]["kind"] == "validation" else -2] |= {"loss": math.nan}
    verdict = Verdict("forward", "overflow", "overflow", op="mm", module="block.3.conv", value="inf", step=40)
    records.append({"kind": "incident", "step": 41, "verdict": encode(verdict.to_json()), "state": None})
    findings = found(records)
    assert {(f.rule, f.step, f.layer) for f in findings} >= {("non-finite", 41, "block.3.conv")}
    assert any("validation: loss is nan" in f.evidence for f in findings)


@pytest.mark.parametrize("kind", ["train", "overfit"])
@pytest.mark.parametrize(("key", "value"), [("r2", math.nan), ("r2", math.inf), ("rmse", -math.inf)])
@pytest.mark.parametrize("other", ["soft_iou", "response_theta"])
def test_every_number_of_an_evaluation_counts(kind: str, key: str, value: float, other: str) -> None:
    records = healthy(40, kind=kind)
    evaluations = [record for record in records if record["kind"] in ("validation", "fixed_grid")]
    evaluations[1] |= {key: value, other: math.nan}
    finding = only(found(records), "non-finite")
    assert (finding.severity, finding.step) == ("alarm", 20)
    assert f"{key} is {value}" in finding.evidence and f"{other} is nan" in finding.evidence


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["gradient_norm", "update_ratio"])
def test_a_parameter_that_is_not_finite_is_named_on_disk_and_live(key: str, value: float) -> None:
    """But for the gradients of a step that the scaler skipped."""
    records = healthy(60)
    skipped = next(record for record in measured(records) if record["skipped"])
    for numbers in skipped["parameters"].values():
        numbers["gradient_norm"] = math.inf
    assert found(records) == []
    for record in measured(records, after=40):
        for name in (f"{LAYERS[5]}.weight", f"{LAYERS[6]}.weight"):
            record["parameters"][name][key] = value
    finding = only([one for one in found(records) if one.rule != "large-updates"], "non-finite")
    assert (finding.severity, finding.step, finding.parameter) == ("alarm", 42, f"{LAYERS[5]}.weight")
    assert f"{key} is {value}, and 1 more" in finding.evidence
    watch = HealthWatch("train")
    assert [one for record in trained(records) for one in watch.add(record)] == [finding]


VERDICT = Verdict("forward", "overflow", "overflow", op="mm", value="inf").to_json()
DAMAGED: list[Any] = [None, {}, [], "x", VERDICT | {"phase": None}, VERDICT | {"path": 3}, VERDICT | {"witness": None}]


@pytest.mark.parametrize("verdict", DAMAGED)
def test_an_incident_whose_verdict_cannot_be_read_is_still_an_alarm(verdict: Any) -> None:
    for record in ({"verdict": verdict}, {}):
        finding = only(found([{"kind": "incident", "step": 4, **record}]), "non-finite")
        assert (finding.severity, finding.step) == ("alarm", 4)
        assert finding.evidence == "an incident whose verdict cannot be read"


def test_a_newer_version_may_say_more_of_an_incident() -> None:
    records = [{"kind": "incident", "step": 4, "verdict": VERDICT | {"weather": "rain"}}]
    assert "inf was born in mm" in only(found(records), "non-finite").evidence


def test_the_scaler_collapses() -> None:
    records = healthy(60)
    for record in trained(records, after=49):
        record |= {"skipped": True, "grad_norm": math.inf}
    finding = only(found(records), "scaler-collapse")
    assert (finding.severity, finding.step) == ("alarm", 59) and "10 steps in a row" in finding.evidence

    records = healthy(60)
    measured(records)[-1]["loss_scale"] = 0.25
    finding = only([f for f in found(records) if f.rule != "headroom"], "scaler-collapse")
    assert "0.25" in finding.evidence

    records = healthy(200)
    for record in trained(records, after=80)[::3]:
        record |= {"skipped": True, "grad_norm": math.inf}
    finding = only(found(records), "scaler-collapse")
    assert finding.severity == "warning" and "of the last 100 steps" in finding.evidence


# --- gradients ----------------------------------------------------------------------------------------------------


def explode(records: list[Record], *, after: int, until: int, loss: float) -> None:
    for record in trained(records, after=after):
        if record["step"] <= until:
            record |= {"grad_norm": 5000.0, "loss": loss}
            for name in record.get("layers", {}):
                if name != "mask":
                    record["layers"][name]["gradient"]["norm"] *= 1e6 if name == LAYERS[7] else 1e3


@pytest.mark.parametrize(("until", "severity"), [(120, "alarm"), (100, "warning")])
def test_gradients_explode(until: int, severity: str) -> None:
    records = healthy(120)
    explode(records, after=90, until=until, loss=3.0)
    finding = only(found(records), "exploding-gradients")
    assert (finding.severity, finding.step, finding.layer) == (severity, 93, LAYERS[7])
    assert "5e+03" in finding.evidence and ("came down" in finding.evidence) == (severity == "warning")


@pytest.mark.parametrize(("until", "loss"), [(92, 3.0), (120, 0.001)])
def test_a_spike_and_growth_with_a_falling_loss_explode_nothing(until: int, loss: float) -> None:
    records = healthy(120)
    explode(records, after=90, until=until, loss=loss)
    assert found(records) == []


def test_one_layer_gets_no_more_gradient() -> None:
    records = healthy(60)
    for record in measured(records, after=40):
        record["layers"][LAYERS[5]]["gradient"]["std"] *= 1e-6
    finding = only(found(records), "vanishing-gradients")
    assert finding.layer == LAYERS[5] and finding.severity == "warning"


def test_gradients_vanish_with_depth() -> None:
    """A factor of a quarter a layer, as of sigmoids: Glorot and Bengio's figure."""
    records = healthy(60)
    for record in measured(records):
        for depth, name in enumerate(reversed(LAYERS)):
            record["layers"][name]["gradient"]["std"] *= 0.25**depth
    finding = only(found(records), "vanishing-gradients")
    assert finding.layer == LAYERS[0] and "first 2 of 10 layers" in finding.evidence


def test_all_gradients_may_fall_together_and_one_may_be_small_from_the_start() -> None:
    records = healthy(60)
    for record in measured(records):
        for name in LAYERS:
            record["layers"][name]["gradient"]["std"] *= 0.7 ** record["step"]
        record["layers"][LAYERS[5]]["gradient"]["std"] *= 1e-9 * random.Random(record["step"]).random()
    assert found(records) == []


# --- learning -----------------------------------------------------------------------------------------------------


def test_a_dead_layer() -> None:
    records = healthy(60)
    for record in measured(records, after=40):
        record["layers"][LAYERS[5]]["activation"] = statistics(0.0)
    finding = only(found(records), "dead-layer")
    assert finding.layer == LAYERS[5] and "output was all zero" in finding.evidence


@pytest.mark.parametrize("kind", ["no", "zero"])
def test_a_layer_that_no_gradient_reaches(kind: str) -> None:
    """The mask, which has no parameters, never has one; nothing is said about it."""
    records = healthy(60)
    for record in measured(records, after=40):
        if kind == "no":
            del record["layers"][LAYERS[5]]["gradient"]
        else:
            record["layers"][LAYERS[5]]["gradient"] = statistics(0.0)
    finding = only(found(records), "dead-layer")
    assert finding.layer == LAYERS[5] and f"{kind} gradient arrived" in finding.evidence


def test_a_layer_that_is_used_now_and_then_is_alive() -> None:
    records = healthy(60)
    for record in measured(records)[1::2]:
        del record["layers"][LAYERS[5]]
    for record in measured(records)[::3]:
        record["layers"][LAYERS[6]]["gradient"] = statistics(0.0)
    assert found(records) == []


@pytest.mark.parametrize(
    ("norm", "ratio", "words"),
    [(None, 0.0, "no gradient arrived"), (0.0, 1e-6, "gradient was zero"), (0.3, None, "still all zero")],
)
def test_a_parameter_never_moves(norm: float | None, ratio: float | None, words: str) -> None:
    """Weight decay alone is no learning."""
    records = healthy(60)
    for record in measured(records):
        record["parameters"][f"{LAYERS[5]}.weight"] = {"gradient_norm": norm, "update_ratio": ratio}
    finding = only(found(records), "never-updated")
    assert finding.parameter == f"{LAYERS[5]}.weight" and words in finding.evidence


def test_one_update_is_enough() -> None:
    records = healthy(60)
    for number, record in enumerate(measured(records)):
        norm, ratio = (0.3, 1e-3) if number == 7 else (None, 0.0)
        record["parameters"][f"{LAYERS[5]}.weight"] = {"gradient_norm": norm, "update_ratio": ratio}
    assert found(records) == []


def test_updates_are_lost_to_rounding() -> None:
    """Of a few parameters each is named; where most are concerned it is the run's dtype."""
    records = healthy(60)
    names = list(records[-1]["parameters"])
    for lost in (names[3:4], names):
        for record in measured(records):
            for name in lost:
                record["parameters"][name] = {"gradient_norm": 0.3, "update_ratio": 0.0}
        finding = only(found(records), "lost-updates")
        assert finding.severity == ("alarm" if lost is names else "warning") and "norm 0.3" in finding.evidence
        assert finding.parameter == (None if lost is names else names[3])


@pytest.mark.parametrize("rate", [lambda step: 1e-6 * step, lambda step: 1e-3 if step < 40 else 1e-9 * (60 - step)])
def test_a_warm_up_and_the_end_of_a_schedule_are_small_by_design(rate: Callable[[int], float]) -> None:
    records = healthy(60)
    for record in trained(records):
        record["learning_rate"] = rate(record["step"])
        if "parameters" in record and record["learning_rate"] < 1e-4:
            for numbers in record["parameters"].values():
                numbers["update_ratio"] = 0.0
    assert found(records) == []


def test_updates_are_too_large() -> None:
    records = healthy(60)
    one = f"{LAYERS[5]}.weight"
    for record in measured(records, after=40):
        record["parameters"][one]["update_ratio"] = 1.5
    assert only(found(records), "large-updates").parameter == one
    for record in measured(records, after=40):
        for numbers in record["parameters"].values():
            numbers["update_ratio"] = 0.3
    finding = only(found(records), "large-updates")
    assert (finding.severity, finding.parameter) == ("alarm", None)


# --- evaluations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "severity"), [(0.0, "alarm"), (3e-6, "warning")])
@pytest.mark.parametrize("kind", ["train", "overfit"])
def test_a_condition_without_effect(kind: str, value: float, severity: str) -> None:
    records = healthy(80, kind=kind)
    for record in records:
        if "response_phi" in record:
            record["response_phi"] = value
    finding = only(found(records), "no-response")
    assert finding.severity == severity and "changing phi alone" in finding.evidence


def test_two_silent_evaluations_are_no_proof_and_nan_is_no_small_number() -> None:
    records = healthy(40)  # evaluated at 0, 20 and 40
    for record in records:
        if "response_phi" in record:
            record["response_phi"] = 0.0
    assert found(records) == []
    records = healthy(80)
    for record in records:
        if "response_phi" in record:
            record["response_phi"] = math.nan
    assert "no-response" not in {finding.rule for finding in found(records)}


def test_the_loss_does_not_fall() -> None:
    records = healthy(80)
    evaluations = [record for record in records if record["kind"] == "validation"]
    for record, loss in zip(evaluations, (1.0, 1.2, 0.995, 1.1, 1.0), strict=True):
        record["loss"] = loss
    finding = only(found(records), "loss-does-not-fall")
    assert finding.severity == "warning" and "at best 0.995" in finding.evidence
    evaluations[2]["loss"] = 0.98
    assert found(records) == []


# --- supply -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["same batch", "few samples", "never drawn"])
def test_data_repeat(fault: str) -> None:
    records = healthy(60)
    for record in trained(records, after=20):
        if fault == "same batch":
            record["samples"] = [f"s{i}" for i in range(BATCH)]
        elif fault == "few samples":
            record["samples"] = [f"s{(record['step'] * BATCH + i) % 10}" for i in range(BATCH)]
    if fault == "never drawn":
        records[0]["num_samples"] = NUM_SAMPLES + 1
    finding = only(found(records), "repeated-data")
    assert finding.severity == "warning" and "samples in all" in finding.evidence
    assert finding.step is not None and finding.step < 35
    assert ("last two batches are the same" in finding.evidence) == (fault == "same batch")


@pytest.mark.parametrize("batch", [NUM_SAMPLES, 2 * NUM_SAMPLES, 3 * NUM_SAMPLES // 2])
def test_a_batch_that_holds_every_sample_repeats_nothing(batch: int) -> None:
    records, rng = healthy(60, kind="overfit"), random.Random(0)
    stream: list[int] = []
    for record in trained(records):
        while len(stream) < batch:
            stream += shuffled(NUM_SAMPLES, rng)
        record["samples"] = [f"s{i}" for i in stream[:batch]]
        del stream[:batch]
    assert found(records) == []


def test_a_stream_may_be_cut_anywhere() -> None:
    """Steps that are missing, a beginning in the middle of an epoch, a run without a header."""
    records = healthy(200)
    cut = [record for record in records if not 50 < record.get("step", 0) < 77 and record.get("step", 9) > 7]
    assert found(cut) == []
    assert found(cut[1:]) == []


def test_memory_grows_with_every_step() -> None:
    records = healthy(300)
    for record in trained(records):
        record["memory_gib"] += 0.002 * record["step"]
    finding = only(found(records), "memory-growth")
    assert "MiB in 1,000 steps" in finding.evidence
    for record in trained(records):  # a validation in the middle that keeps its buffers
        record["memory_gib"] = 0.5 + 0.3 * (record["step"] > 150) + random.Random(record["step"]).uniform(0, 0.01)
    assert found(records) == []


@pytest.mark.parametrize("gib", [0.0, 0.5, math.nan])
def test_memory_that_is_constant_does_not_grow(gib: float) -> None:
    records = healthy(130)
    for record in trained(records):
        record["memory_gib"] = gib
    assert found(records) == []


def test_waiting_for_data() -> None:
    records = healthy(60)
    for record in trained(records, after=20):
        record["data_wait_share"] = 0.35
    finding = only(found(records), "waiting-for-data")
    assert "35%" in finding.evidence and finding.step == 60


# --- all ----------------------------------------------------------------------------------------------------------


def test_every_rule_says_when_why_and_whence() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.threshold and len(rule.why) > 40 and len(rule.source) > 20, rule.name


def test_the_rules_marked_as_live_are_those_that_are_asked() -> None:
    assert {rule.name for rule in LIVE_RULES} == {rule.name for rule in RULES if rule.live}


def test_alarms_come_first_and_rules_can_be_chosen() -> None:
    records = healthy(60)
    grow(records, LAYERS[4], "activation", 2.0, 0.1)
    trained(records)[-1]["loss"] = math.nan
    for record in trained(records, after=20):
        record["data_wait_share"] = 0.35
    assert [f.severity for f in found(records)] == ["alarm", "warning", "warning"]
    chosen = [rule for rule in RULES if rule.name == "waiting-for-data"]
    assert [f.rule for f in examine(History(records), chosen)] == ["waiting-for-data"]


# --- stages -------------------------------------------------------------------------------------------------------


def test_a_stage_that_failed_is_an_alarm_until_it_passes_or_training_goes_on() -> None:
    failed = {"kind": "stage", "step": 0, "stage": "check-forward", "passed": False, "message": "NaN in\n  mid_block"}
    passed = failed | {"passed": True, "message": ""}
    finding = only(found([failed]), "failed-stage")
    assert (finding.severity, finding.evidence) == ("alarm", "check-forward failed: NaN in mid_block")
    incident = {"kind": "incident", "step": 0, "verdict": {}}
    reported = found([incident, failed | {"message": "inf was born in exp\n  module  a\n  fix  b"}])
    assert [(f.rule, f.evidence) for f in reported][1:] == [
        ("failed-stage", "check-forward failed: inf was born in exp")
    ]
    assert found([passed]) == found([failed, passed]) == found([failed, *healthy(3)]) == []
    trained_and_failed = [passed, *healthy(3), failed | {"stage": "train", "step": 0}]
    assert "train failed" in only(found(trained_and_failed), "failed-stage").evidence, "as written, not by step"
    assert only(found([{"kind": "stage", "step": 3}]), "failed-stage").step == 3, "half a record is no success"


# --- while it runs ------------------------------------------------------------------------------------------------


def test_each_layer_is_reported_once_and_early() -> None:
    """Two layers on their way to overflow: one warning and one alarm each, though every step would give them again."""
    records = healthy(100)
    grow(records, LAYERS[4], "activation", 0.0, 0.1)
    grow(records, LAYERS[8], "activation", 1.0, 0.1)
    watch = HealthWatch("train")
    reported = [finding for record in trained(copy.deepcopy(records)) for finding in watch.add(record)]
    assert {f.rule for f in reported} == {"headroom"}
    first, second, alarm = reported
    assert (first.layer, first.severity, first.step, first.predicted_step) == (LAYERS[4], "warning", 72, 100)
    assert (second.layer, second.severity, second.step, second.predicted_step) == (LAYERS[8], "warning", 82, 110)
    assert (alarm.layer, alarm.severity, alarm.step, alarm.predicted_step) == (LAYERS[4], "alarm", 92, 100)


def test_a_gradient_is_reported_next_to_the_activation_of_its_layer() -> None:
    records = healthy(100)
    grow(records, LAYERS[4], "activation", 2.0, 0.1)
    grow(records, LAYERS[4], "gradient", 2.5, 0.1)
    watch = HealthWatch("train")
    reported = [finding for record in trained(records) for finding in watch.add(record)]
    assert [(f.layer, f.part, f.severity) for f in reported] == [
        (LAYERS[4], "activation", "warning"),
        (LAYERS[4], "gradient", "warning"),
    ]


def test_what_is_reported_live_is_what_the_records_show() -> None:
    """An explosion in the middle of a long run: the window forgets steps, not the largest norm that they had."""
    for start in (30, 560):
        records = healthy(start + 30)
        trained(records)[20]["grad_norm"] = 400.0 if start == 560 else 3.0
        explode(records, after=start, until=start + 30, loss=30.0)
        watch = HealthWatch("train")
        reported = [finding for record in trained(records) for finding in watch.add(record)]
        finding = only(reported, "exploding-gradients")
        on_disk = only(found(records), "exploding-gradients")
        assert (finding.step, finding.evidence) == (on_disk.step, on_disk.evidence)


def test_headroom_is_predicted_where_statistics_are_rare() -> None:
    """The scale of each column is known for as long as the column is."""
    records = healthy(1000, every=50)
    grow(records, LAYERS[4], "gradient", 2.0, 0.005)
    watch = HealthWatch("train")
    reported = [finding for record in trained(records) for finding in watch.add(record)]
    on_disk = only(found(records), "headroom")
    assert {(f.rule, f.layer) for f in reported} == {("headroom", LAYERS[4])}
    assert reported[-1].predicted_step is not None and on_disk.predicted_step is not None
    assert abs(reported[-1].predicted_step - on_disk.predicted_step) <= 1


def test_a_scale_that_a_record_lacks_is_not_one() -> None:
    """Without it a gradient's headroom is unknown; in a run without a scaler it is what was measured."""
    records = healthy(60)
    grow(records, LAYERS[4], "gradient", 2.0, 0.1)
    for record in measured(records)[-3:]:
        del record["loss_scale"]
    assert found(records) == []
    for record in measured(records):
        record["layers"][LAYERS[4]]["gradient"] = statistics(65504.0 / 2 ** (2 + 0.1 * (60 - record["step"])))
        record.pop("loss_scale", None)
    assert only(found(records), "headroom").layer == LAYERS[4]


def test_skips_are_reported_in_steps_without_statistics() -> None:
    watch = HealthWatch("train")
    reported = []
    for step in range(1, 31):
        reported += watch.add({"kind": "train", "step": step, "loss": 1.0, "grad_norm": math.inf, "skipped": step > 5})
    assert [(f.rule, f.step) for f in reported if f.rule == "scaler-collapse"] == [("scaler-collapse", 15)]


@pytest.mark.parametrize("resumed_at", [1, 89, 92, 100, 118])
def test_a_resumed_run_is_watched_as_an_unbroken_one(resumed_at: int) -> None:
    """What was reported before the resume, and stands in the records, is not reported again."""
    records = healthy(120)
    grow(records, LAYERS[4], "activation", 0.05, 0.1)  # not on a threshold: records are rounded
    explode(records, after=90, until=120, loss=30.0)

    def reported(watch: HealthWatch, own: list[Record]) -> list[Record]:
        findings = [(record["step"], finding) for record in own for finding in watch.add(record)]
        return [{"kind": "health", "step": step, "findings": [one.to_json()]} for step, one in findings]

    unbroken = reported(HealthWatch("train"), trained(records))
    assert [(one["step"], one["findings"][0]["rule"], one["findings"][0]["severity"]) for one in unbroken] == [
        (92, "headroom", "warning"),
        (94, "exploding-gradients", "alarm"),
        (112, "headroom", "alarm"),
    ]
    before = [record for record in records if record.get("step", 0) <= resumed_at]
    first = reported(HealthWatch("train"), trained(before))
    resumed = HealthWatch("train")
    for record in [*before, *first]:
        resumed.remember(decode(json.loads(json.dumps(encode(record)))))
    assert first + reported(resumed, trained(records, after=resumed_at)) == unbroken
