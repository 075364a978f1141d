"""Rules of what must go on as it was, of what surrounds an update, of the shape of a loss and of a model's inputs: each
speaks where it must, and is silent on a healthy run."""

import math
import random
from typing import Any

import pytest

from diagnostics.health import HealthWatch
from diagnostics.health.continuity import AFTER
from tests.diagnostics.health.test_health import (
    BATCH,
    LAYERS,
    NUM_SAMPLES,
    Record,
    found,
    healthy,
    measured,
    only,
    trained,
)

SCHEDULE = {"learning_rate": 1e-3, "warmup_steps": 20, "schedule": "constant", "max_steps": 300}
FROZEN = "vae.conv.weight"


def kept(num_steps: int, *, resumed_at: int | None = None, seed: int = 0) -> list[Record]:
    """A healthy run that records all that surrounds an update, resumed once."""
    rng, records = random.Random(seed), healthy(num_steps, seed=seed)
    records[0] |= {"schedule": SCHEDULE}
    for record in measured(records):
        record |= {
            "num_updates": 0 if record["skipped"] else 1,
            "gradient_carried": 0.0,
            "frozen_moved": {},
            "input_std": {"data": rng.uniform(0.8, 1.2), "embedding": 6.5},
            "input_max": {"data": rng.uniform(3, 5), "embedding": 40.0},
        }
        if not record["skipped"]:
            record |= {"ema_moved": rng.uniform(0.97, 1.03), "ema_distance": 1e-3 * rng.random()}
    if resumed_at is not None:
        place = next(i for i, record in enumerate(records) if record.get("step", 0) > resumed_at)
        records.insert(
            place, {"kind": "header", "stage": "train", "num_samples": NUM_SAMPLES, "resumed_at": resumed_at}
        )
        records[place]["schedule"] = SCHEDULE
    return records


def live(records: list[Record]) -> set[str]:
    watch, said = HealthWatch("train"), set()
    for record in records:
        if record["kind"] == "header":
            watch.remember(record)
        elif record["kind"] == "train":
            said |= {finding.rule for finding in watch.add(record)}  # type: ignore[arg-type]
    return said


@pytest.mark.parametrize(("num_steps", "resumed_at"), [(4, 2), (24, 12), (60, 41), (300, 150), (300, None)])
def test_a_healthy_run_is_silent(num_steps: int, resumed_at: int | None) -> None:
    for seed in range(2):
        records = kept(num_steps, resumed_at=resumed_at, seed=seed)
        assert [str(finding) for finding in found(records)] == [] and live(records) == set()


@pytest.mark.parametrize("lasts", [3, 100])
def test_a_resume_that_jumps(lasts: int) -> None:
    records = kept(60, resumed_at=40)
    for record in trained(records, after=40)[:lasts]:
        record["loss"] *= 2.5
    finding = next(one for one in found(records) if one.rule == "resume-jumps")
    assert (finding.severity, finding.step) == ("alarm", 41) and "resume at step 40" in finding.evidence
    assert "resume-jumps" in live(records)
    before = [record for record in records if record.get("step", 0) <= 40 + AFTER - 1]
    assert "resume-jumps" not in {one.rule for one in found(before)}, "two losses are no proof"


def test_an_order_that_is_repeated_and_one_that_is_another() -> None:
    records, order = kept(60), random.Random(1).sample(range(NUM_SAMPLES), NUM_SAMPLES)
    for record in trained(records):
        first = (record["step"] - 1) * BATCH
        record["samples"] = [f"s{order[i % NUM_SAMPLES]}" for i in range(first, first + BATCH)]
    finding = only(found(records), "order-repeated")
    assert finding.severity == "warning" and finding.step == math.ceil(2 * NUM_SAMPLES / BATCH)


def test_a_rate_that_is_not_the_schedules() -> None:
    records = kept(60, resumed_at=30)
    for record in trained(records, after=25):
        record["learning_rate"] = 5e-4
    finding = only(found(records), "rate-off-schedule")
    assert (finding.severity, finding.step) == ("alarm", 26) and "0.0005" in finding.evidence
    records[0]["schedule"] = SCHEDULE | {"schedule": "cosine"}
    records = [record for record in records if record.get("step", 0) <= 22 and "resumed_at" not in record]
    for record in trained(records):
        done = record["step"] - 1
        share = max(0, done - 20) / 280
        record["learning_rate"] = 1e-3 * min((done + 1) / 20, (1 + math.cos(math.pi * share)) / 2)
    assert found(records) == []


@pytest.mark.parametrize("factor", [0.0, 0.1, 20.0])
def test_averages_that_do_not_follow(factor: float) -> None:
    records = kept(60)
    for record in measured(records, after=20):
        record["ema_moved"] *= factor
    finding = only(found(records), "ema-does-not-follow")
    assert finding.severity == "alarm" and "their decay asks for" in finding.evidence
    assert live(records) == {"ema-does-not-follow"}


@pytest.mark.parametrize(
    ("key", "value", "rule", "parameter"),
    [
        ("gradient_carried", 0.7, "gradients-summed", None),
        ("frozen_moved", {FROZEN: 1e-4}, "frozen-weights-move", FROZEN),
        ("num_updates", 0, "no-step-taken", None),
    ],
)
def test_what_surrounds_an_update(key: str, value: Any, rule: str, parameter: str | None) -> None:
    records = kept(60)
    for record in measured(records, after=20):
        record[key] = value
        if rule == "no-step-taken":
            for numbers in record["parameters"].values():
                numbers["update_ratio"] = 0.0
    finding = only(found(records), rule)
    assert (finding.severity, finding.parameter) == ("alarm", parameter)
    assert live(records) == {rule}


@pytest.mark.parametrize(("until", "severity"), [(120, "alarm"), (100, "warning")])
def test_a_loss_that_leaps(until: int, severity: str) -> None:
    records = kept(120)
    for record in trained(records, after=90):
        if record["step"] <= until:
            record["loss"] = 3.0
    finding = only(found(records), "loss-spike")
    assert finding.severity == severity and 88 <= (finding.step or 0) <= 91
    for record in trained(records, after=92):
        record["loss"] = 0.3
    assert found(records) == [], "two bad batches"


@pytest.mark.parametrize("training_falls", [False, True])
def test_a_loss_that_stands_early_and_high(training_falls: bool) -> None:
    records = kept(300)
    for record in records:
        if record["kind"] == "validation":
            record["loss"] = 1.0 if record["step"] == 0 else 0.8 + 0.001 * (record["step"] % 3)
        elif record["kind"] == "train" and not training_falls:
            record["loss"] = 0.8 + 0.02 * (record["step"] % 5)
    findings = found(records)
    assert [one.rule for one in findings] == ([] if training_falls else ["loss-plateau"])


@pytest.mark.parametrize(("key", "value"), [("input_max", 255.0), ("input_std", 8.0), ("input_std", 0.1)])
def test_an_input_leaves_its_range(key: str, value: float) -> None:
    records = kept(60)
    for record in measured(records, after=40):
        record[key]["data"] = value
    finding = only(found(records), "input-out-of-range")
    assert "data" in finding.evidence and finding.severity == "warning"


def test_a_layer_that_never_ran_is_named_once() -> None:
    records = kept(60)
    for record in measured(records):
        del record["layers"][LAYERS[5]]
        for part in ("weight", "bias"):
            record["parameters"][f"{LAYERS[5]}.{part}"] = {"gradient_norm": None, "update_ratio": 0.0}
    finding = only(found(records), "layer-never-ran")
    assert finding.layer == LAYERS[5] and "its 2 parameters" in finding.evidence
    for record in measured(records):  # used without being called: torch.nn.functional with its weight
        record["parameters"][f"{LAYERS[5]}.weight"] = {"gradient_norm": 0.1, "update_ratio": 1e-3}
    assert "layer-never-ran" not in {one.rule for one in found(records)}


def short(value: float, key: str) -> list[Record]:
    """100 steps that are validated at their beginning, middle and end."""
    records = [r for r in kept(100) if r["kind"] != "validation"]
    for step in (0, 50, 100):
        records.append({"kind": "validation", "step": step, "loss": 1.0 / (1 + step / 50), "response_phi": 0.1 * step})
    for record in records[-3:]:
        record[key] = value
    return records


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [("loss", 0.7, "loss-does-not-fall"), ("response_phi", 0.0, "no-response"), ("response_phi", 1e-6, "no-response")],
)
def test_a_short_run_can_be_judged_too(key: str, value: float, rule: str) -> None:
    assert only(found(short(value, key)), rule).step == 100
    rising = short(value, key)
    rising[0]["schedule"] = SCHEDULE | {"warmup_steps": 1000}
    for record in trained(rising):
        record["learning_rate"] = 1e-6 * record["step"]
    said = {one.rule for one in found(rising)}
    assert said == ({rule} if value == 0.0 else set()), "a warm-up has not begun to learn; a path that is cut says 0"
