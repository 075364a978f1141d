"""Run one drill: healthy steps of the tiny shadow model, then the fault, under the watch that every stage uses."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diagnostics import NonFiniteError
from diagnostics.health import Finding, HealthWatch, headroom
from diagnostics.records import TrainingStep
from diagnostics.statistics import recorded_layers
from shadowlab.console import Reporter
from shadowlab.distributed import SingleProcess
from shadowlab.drill.case import Drill
from shadowlab.drill.cases import DRILLS
from shadowlab.encoded_batch import LATENT_CHANNELS, Conditions, EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models import ModelSpec
from shadowlab.seeding import normal
from shadowlab.settings import load_config
from shadowlab.tasks import open_task
from shadowlab.training import StepPlace, Trainee, build_trainee, build_unet, training_step

_NUM_SAMPLES = 6  # like no dimension of a parameter
_SIDE = 8  # of the latents


@dataclass(frozen=True)
class DrillResult:
    """What a drill came to."""

    drill: Drill
    error: NonFiniteError | None
    """What a failing run would print; None where no step failed."""
    misses: tuple[str, ...]
    """What is wrong with it, in words."""
    seconds: float
    warnings: tuple[Finding, ...] = ()
    """What the health rules said before, of a drill that has a forecast."""

    @property
    def passed(self) -> bool:
        return not self.misses

    def to_json(self) -> dict[str, Any]:
        return {
            **self.drill.to_json(),
            "passed": self.passed,
            "misses": list(self.misses),
            "verdict": None if self.error is None else self.error.verdict.to_json(),
            "warnings": [finding.to_json() for finding in self.warnings],
            "seconds": self.seconds,
        }


def find_drills(name: str | None) -> tuple[Drill, ...]:
    """The drill of a name, or all of them.

    Raises:
        UserError: none has it.
    """
    found = tuple(drill for drill in DRILLS if name in (None, drill.name))
    if not found:
        raise UserError(f"no drill is called {name!r}; there are {', '.join(drill.name for drill in DRILLS)}")
    return found


def list_drills(drills: Sequence[Drill], reporter: Reporter) -> None:
    """One line each."""
    width, phases = max(len(drill.name) for drill in drills), max(len(drill.phase) for drill in drills)
    for drill in drills:
        reporter.say(f"{drill.name:<{width}}  {drill.phase:<{phases}}  {drill.summary} ({drill.reference})")
    reporter.say("see one with: shadowlab drill NAME; all of them with: shadowlab drill --all")
    reporter.result({"drills": [drill.to_json() for drill in drills]})


def report_drill(result: DrillResult, reporter: Reporter) -> None:
    """What was put in, what a failing run prints, and whether that is right."""
    drill = result.drill
    where = "" if drill.origin is None else f" at {drill.origin}"
    reporter.say(f"drill {drill.name}: {drill.summary}")
    reporter.say(f"injected into phase {drill.phase}{where}; first met in {drill.reference}")
    reporter.say("")
    for finding in result.warnings:
        reporter.say(f"warning: step {finding.step}: {finding}", style="yellow")
    # As `cli.errors` prints what a stage raises.
    reporter.say("no error: every step went through" if result.error is None else f"error: {result.error}")
    reporter.say("")
    if result.passed:
        reporter.say(f"{drill.name}: right", style="green")
    else:
        reporter.say(f"{drill.name}: WRONG: {'; '.join(result.misses)}", style="red")


def run_drill(drill: Drill) -> DrillResult:
    """Nothing is written, and global randomness is left alone."""
    started = time.perf_counter()
    error: NonFiniteError | None = None
    warnings: list[Finding] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trainee = _trainee(drill)
        batch = random_batch(open_task(load_config(preset="tiny")).spec, _NUM_SAMPLES, _SIDE)
        health = HealthWatch("train")
        try:
            for number in range(drill.num_healthy_steps):
                _step(trainee, batch, number)
            with drill.inject(trainee, batch) as hurt:
                for number in range(drill.num_healthy_steps, drill.num_healthy_steps + drill.num_steps):
                    if drill.each_step is not None:
                        drill.each_step(trainee)
                    record = _step(trainee, hurt, number)
                    if drill.forecast is not None:
                        warnings += health.add(record)
        except NonFiniteError as caught:
            error = caught
        finally:
            trainee.watch.detach()
    misses = drill.misses(None if error is None else error.verdict) + _missed_forecast(drill, warnings, error)
    return DrillResult(drill, error, tuple(misses), time.perf_counter() - started, tuple(warnings))


def _missed_forecast(drill: Drill, warnings: Sequence[Finding], error: NonFiniteError | None) -> list[str]:
    if drill.forecast is None:
        return []
    own = [one for one in warnings if (one.rule, one.layer) == (headroom.name, drill.forecast.layer)]
    others = sorted({one.place for one in warnings} - {drill.forecast.layer})
    first = own[0] if own else None
    real = None if error is None or error.verdict.step is None else error.verdict.step + 1
    warned_at, predicted = (None, None) if first is None else (first.step, first.predicted_step)
    return drill.forecast.misses(warned_at, predicted, real) + [
        f"a warning about {place or 'the run'}" for place in others
    ]


def _trainee(drill: Drill) -> Trainee:
    assignments = ("device=cpu", f"precision={drill.precision}", "optimizer.warmup_steps=0", *drill.assignments)
    config = load_config(preset="tiny", assignments=list(assignments))
    processes = SingleProcess(torch.device("cpu"))
    task, settings = open_task(config), config.train
    unet = build_unet(config, task.spec, processes.device)
    return build_trainee(
        config, unet, task.objective, processes, config.optimizer, settings.max_steps, ema_decay=settings.ema_decay
    )


def random_batch(spec: ModelSpec, count: int, side: int) -> EncodedBatch:
    """Encoded samples of noise: where numbers go wrong depends on their size, not on what they show.

    Args:
        side: of the latents.
    """

    def stack(name: str, *shape: int) -> torch.Tensor:
        return torch.stack([normal(shape, 0, f"drill {name}", i) for i in range(count)])

    num_concatenated = spec.in_channels - LATENT_CHANNELS
    return EncodedBatch(
        ids=[f"sample_{i}" for i in range(count)],
        positions=torch.arange(count),
        data=stack("data", LATENT_CHANNELS, side, side),
        conditions=Conditions(
            concatenated=stack("concatenated", num_concatenated, side, side) if num_concatenated else None,
            embedding=None if spec.embedding_dim is None else stack("embedding", spec.embedding_dim),
        ),
    )


def _step(trainee: Trainee, batch: EncodedBatch, number: int) -> TrainingStep:
    """One training step; what the health rules read of its record."""
    first = number * _NUM_SAMPLES
    at = batch.at_positions(torch.arange(first, first + _NUM_SAMPLES))
    scale = 1.0 if trainee.scaler is None else trainee.scaler.get_scale()  # before the step may change it
    outcome = training_step(trainee, [at], StepPlace(number, first, _NUM_SAMPLES))
    record: TrainingStep = {
        "step": number + 1,
        "loss": outcome.loss,
        "grad_norm": outcome.grad_norm,
        "skipped": outcome.skipped,
    }
    if trainee.watch.is_due(number):
        record["loss_scale"], record["layers"] = scale, recorded_layers(trainee.watch.layers, scale)
    return record
