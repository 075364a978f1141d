"""The harness's functions of numbers alone, each next to its specification: a fault in one of them is named at once.

What uses them is compared afterwards, in a run.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shadowlab import seeding
from shadowlab.data import micro_batch_positions, sample_indices, split_by_object
from shadowlab.models import Objective, stratified_times
from shadowlab.quantities import Quantity
from shadowlab.settings import Config
from shadowlab.stages.check_forward import reference
from shadowlab.stages.check_forward.reference import Plan
from shadowlab.tasks import ObjectiveReference
from shadowlab.training import learning_rate

_SHAPE = (2, 4, 6, 5)


def functions(config: Config, plan: Plan, objects: list[str]) -> Iterator[Quantity]:
    """config: the user's own, whose whole schedule is looked at. objects: of the golden samples."""
    yield from _randomness(plan)
    yield from _order(plan, objects)
    yield from _schedule(config, plan)


def _randomness(plan: Plan) -> Iterator[Quantity]:
    place, seed = "shadowlab/seeding.py", plan.seed
    seeds = [seeding.derive_seed(seed, "noise", i) for i in range(4)] + [seeding.derive_seed(seed + 1, "t", "a", 2)]
    wanted = [reference.seed_of(seed, "noise", i) for i in range(4)] + [reference.seed_of(seed + 1, "t", "a", 2)]
    yield Quantity("seeds of purposes and counters", f"{place}, derive_seed", seeds, wanted)
    seen = torch.rand(3, generator=seeding.generator(seed, "t", 5))
    drawn = torch.rand(3, generator=reference.generator(seed, "t", 5))
    yield Quantity("random numbers", f"{place}, generator", seen, drawn, 0.0)
    for position in (0, 3):
        known = reference.noise_at(position, _SHAPE, seed)
        yield Quantity(
            "normal numbers", f"{place}, normal", seeding.normal(_SHAPE, seed, "noise", position), known, 0.0
        )
    order = seeding.permutation(9, seed, "order", 1).tolist()
    yield Quantity("a permutation", f"{place}, permutation", order, reference.order(9, seed, 1))


def _order(plan: Plan, objects: list[str]) -> Iterator[Quantity]:
    split = split_by_object(objects, plan.validation_fraction, plan.seed)
    wanted = reference.split(objects, plan.validation_fraction, plan.seed)
    yield Quantity("samples to train on", "shadowlab/data/split.py, split_by_object", split.train, wanted[0])
    yield Quantity("samples held out", "shadowlab/data/split.py, split_by_object", split.validation, wanted[1])
    seen = sample_indices(3, 14, 5, plan.seed)
    place = "shadowlab/data/order.py, sample_indices"
    yield Quantity(
        "the order of three epochs", place, seen, [reference.sample_at(p, 5, plan.seed) for p in range(3, 17)]
    )
    for world in (1, 2, 3):
        several = replace(plan, world=world)
        for rank in range(world):
            first = 2 * several.global_batch
            own = micro_batch_positions(first, plan.batch_size, plan.accumulation, rank, world)
            place = "shadowlab/data/loader.py, micro_batch_positions"
            name = f"positions of process {rank} of {world}"
            yield Quantity(name, place, own, reference.positions(several, 2, rank))
    for share in (0.0, 0.3, plan.noise_share):
        shared = replace(plan, noise_share=share)
        offset = float(torch.rand((), generator=reference.generator(plan.seed, "t", 4), dtype=torch.float64))
        count = plan.global_batch
        t = torch.cat([stratified_times(1, offset, i, count, share) for i in range(count)])
        known = reference.times(shared, 4, range(4 * count, 5 * count))
        yield Quantity("t of a step's samples", "shadowlab/models/flow.py, stratified_times", t, known, 1e-6)


def _schedule(config: Config, plan: Plan) -> Iterator[Quantity]:
    """Of the user's own configuration, and of both schedules with a warm-up."""
    own, last = config.optimizer, config.train.max_steps
    place = "shadowlab/training/optimizer.py, learning_rate"
    for schedule in ("constant", "cosine"):
        for warmup, steps in ((own.warmup_steps, last), (7, 40), (0, 12)):
            varied = own.model_copy(update={"schedule": schedule, "warmup_steps": warmup})
            known = replace(
                plan, schedule=schedule, warmup_steps=warmup, max_steps=steps, learning_rate=own.learning_rate
            )
            asked = sorted({0, 1, warmup - 1, warmup, warmup + 1, *(steps * i // 16 for i in range(17))})
            asked = [step for step in asked if 0 <= step <= steps]
            rates = torch.tensor([learning_rate(varied, step, steps) for step in asked], dtype=torch.float64)
            wanted = torch.tensor([reference.learning_rate(known, step) for step in asked], dtype=torch.float64)
            yield Quantity(f"rates, {schedule} after {warmup} steps of warm-up", place, rates, wanted, 1e-9)


def objective_functions(objective: Objective, wanted: ObjectiveReference, seed: int) -> Iterator[Quantity]:
    """x_t, timesteps, the loss and generation."""
    noise, data, other = (reference.normal(_SHAPE, seed, "compare", name) for name in ("noise", "data", "other"))
    t = torch.tensor([0.2, 0.9])
    places = wanted.places
    yield Quantity("x_t", places["noised"], objective.noised(noise, data, t), wanted.noised(noise, data, t))
    many = torch.tensor([0.0, 0.25, 0.5, 0.999])
    yield Quantity("timesteps", places["timesteps"], objective.timesteps(many), wanted.timesteps(many), 1e-6)
    seen = objective.loss(other, noise, data, t)
    yield Quantity("loss of each sample", places["loss"], seen, wanted.loss(other, noise, data, t))
    asked: dict[str, list[float]] = {"seen": [], "wanted": []}

    def answering(side: str) -> Any:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            asked[side].append(round(float(t[0]), 6))
            return torch.sin(3 * x + t.view(-1, 1, 1, 1))

        return predict

    for steps in (1, 4):
        generated = objective.generate(answering("seen"), noise, steps)
        right = wanted.generate(answering("wanted"), noise, steps)
        yield Quantity(f"times of {steps} steps of sampling", places["generate"], asked["seen"], asked["wanted"])
        yield Quantity(f"what {steps} steps of sampling come to", places["generate"], generated, right, 1e-4)
