"""What is done with a golden run's weights, next to its specification: average, validation, generation.

Legend: n held-out samples, h w latents.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shadowlab.inference import LoadedModel, sample, seeded_noise
from shadowlab.quantities import Quantity, same
from shadowlab.stages.check_forward import reference
from shadowlab.stages.check_forward.reference import MicroBatch
from shadowlab.stages.check_forward.training_comparison import TrainingComparison

_GRID = "shadowlab/evaluation/fixed_grid.py, FixedGrid.evaluate"
_TRAINEE = "shadowlab/training/trainee.py, Trainee"
_MADE = "shadowlab/training/trainee.py, build_trainee"
_HALF = (torch.bfloat16, torch.float16)
_PART = "shadowlab/evaluation/fixed_grid.py, FixedGrid._part"
_STEPS = 4


def judgement(comparison: TrainingComparison) -> Iterator[Quantity]:
    """After the steps were found right. Weights are the average of the training, or its last where there is none."""
    heard, run = comparison.heard, comparison.run
    weights = comparison.average or comparison.last
    if run.saved is not None:
        saved = _named(run.saved)
        halved = run.config.train.ema_decay is not None and _is_rounded(saved) and not _is_rounded(weights)
        place = _MADE if halved else f"{_TRAINEE}.update_average"
        yield from _weights("saved average", place, comparison, saved, weights)
    yield from _weights("weights that are judged", f"{_TRAINEE}.averaged_weights", comparison, heard.judged, weights)
    comparison.set(weights)
    comparison.model.eval()
    last = [one for one in heard.forwards if not one.trains][-1:]
    yield Quantity("evaluation mode in validation", _GRID, [one.training_mode for one in last], [False])
    with torch.no_grad():
        if run.records:
            yield from _validation(comparison)
        if run.saved is not None:
            yield from _generation(comparison, run.saved)


def _named(model: LoadedModel) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.unet.named_parameters()}


def _weights(
    name: str, place: str, comparison: TrainingComparison, seen: dict[str, Tensor], wanted: dict[str, Tensor]
) -> Iterator[Quantity]:
    """Given as what they became in training: nearer to it than a hundredth of the way."""
    first = comparison.heard.first
    moved = max(float((tensor - first[one]).abs().amax()) for one, tensor in wanted.items())
    how = partial(_which, seen, comparison)
    for one, tensor in wanted.items():
        relative = (1e-2 * moved) / max(float(tensor.abs().amax()), 1e-6)
        yield Quantity(f"{name}: {one}", place, seen.get(one), tensor, relative, how)


def _is_rounded(weights: dict[str, Tensor]) -> bool:
    """Whether all are numbers of a half type, though float32 is what they should be kept in."""
    return any(all(torch.equal(one, one.to(half).to(one.dtype)) for one in weights.values()) for half in _HALF)


def _which(seen: dict[str, Tensor], comparison: TrainingComparison) -> str:
    known = {"those before training": comparison.heard.first, "those of the last step": comparison.last}
    for text, weights in known.items():
        if all(name in seen and same(seen[name].cpu(), tensor.cpu(), 1e-6) for name, tensor in weights.items()):
            return f"are {text}"
    return ""


def _grid_batch(comparison: TrainingComparison, tensors: dict[str, Tensor], noise: Tensor, t: float) -> MicroBatch:
    objective, data = comparison.reference.objective, tensors["data"]
    times = torch.full((len(data),), t, device=data.device)
    return _given(comparison, tensors, objective.noised(noise, data, times), noise, times)


def _given(
    comparison: TrainingComparison, tensors: dict[str, Tensor], x: Tensor, noise: Tensor, times: Tensor
) -> MicroBatch:
    objective = comparison.reference.objective
    inputs = [x, *(tensors[name] for name in ("concatenated",) if name in tensors)]
    return MicroBatch(
        sample=torch.cat(inputs, dim=1),
        timesteps=objective.timesteps(times),
        tokens=tensors.get("tokens"),
        embedding=tensors.get("embedding"),
        loss=lambda prediction: objective.loss(prediction, noise, tensors["data"], times),
    )


def _validation(comparison: TrainingComparison) -> Iterator[Quantity]:
    """The figures of the last validation, recomputed."""
    run, plan, ref = comparison.run, comparison.plan, comparison.reference
    record = next((r for r in reversed(run.records) if r.get("kind") == "validation"), None)
    place = "shadowlab/stages/train/validation.py, validate"
    yield Quantity("validation after the last step", place, None if record is None else record["step"], plan.max_steps)
    assert record is not None
    settings, ids = run.config.validation, comparison.held_out_ids
    tensors = comparison.encoded(ids)
    shape = tensors["data"].shape[1:]
    losses: dict[float, list[Tensor]] = {t: [] for t in settings.timesteps}
    generated: list[Tensor] = []
    judged: dict[str, list[Tensor]] = {}
    for draw in range(settings.num_noises):
        noise = torch.stack([reference.grid_noise(one, draw, shape, plan.seed) for one in ids]).to(run.device)
        for t, own in losses.items():
            batch = _grid_batch(comparison, tensors, noise, t)
            own.append(batch.loss(reference.predicted(comparison.model, batch, comparison.precision)))

        def predict(x: Tensor, times: Tensor, noise: Tensor = noise) -> Tensor:
            given = _given(comparison, tensors, x, noise, times)
            return reference.predicted(comparison.model, given, comparison.precision)

        generated.append(ref.objective.generate(predict, noise, 1))
        pictures = ref.decoded(generated[-1], comparison.vae)
        for name, values in ref.judged(run.layout, ids, pictures).items():
            judged.setdefault(name, []).append(values)
    loose = 1e-3 * max(1.0, comparison.loose / 3)
    for t, own in losses.items():
        yield Quantity(
            f"validation loss at t = {t:g}", _GRID, float(record[f"loss_t{t:g}"]), float(torch.cat(own).mean()), loose
        )
    mean = sum(float(torch.cat(own).mean()) for own in losses.values()) / len(losses)
    yield Quantity("validation loss", _GRID, float(record["loss"]), mean, loose)
    if run.world == 1:  # of several, each judges a share
        yield from _starts(comparison, ids, shape)
    truth = tensors["data"].repeat(len(generated), 1, 1, 1)
    r2 = reference.explained(torch.cat(generated), truth)
    yield Quantity("R^2 of validation", "shadowlab/metrics.py, r_squared", float(record["r2"]), r2, 5 * loose)
    for name, of_metric in judged.items():
        yield Quantity(
            f"{name} of validation",
            ref.judging_place,
            float(record[name]),
            float(torch.cat(of_metric).mean()),
            5 * loose,
        )


def _starts(comparison: TrainingComparison, ids: list[str], shape: torch.Size) -> Iterator[Quantity]:
    """That the model was asked for a picture of each sample's noise, and of nothing else."""
    heard, run = comparison.heard, comparison.run
    last = max(i for i, one in enumerate(heard.forwards) if one.trains)
    given = [one.sample[:, : shape[0]].float() for one in heard.forwards[last + 1 :] if one.sample is not None]
    asked = torch.cat([one.to(run.device) for one in given])
    for draw in range(run.config.validation.num_noises):
        for name in ids:
            noise = reference.grid_noise(name, draw, shape, comparison.plan.seed).to(run.device)
            nearest = asked[int((asked - noise).abs().flatten(1).amax(dim=1).argmin())]
            yield Quantity(f"noise {draw} that becomes a picture of {name}", _PART, nearest, noise, 1e-2)


def _generation(comparison: TrainingComparison, saved: LoadedModel) -> Iterator[Quantity]:
    """From the checkpoint, as `generate` does, in one step and in several."""
    run, ref = comparison.run, comparison.reference
    name = comparison.held_out_ids[0]
    tensors = comparison.encoded([name])
    shape = (1, *tensors["data"].shape[1:])
    noise = seeded_noise(shape, 3)
    known = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    yield Quantity("noise of a picture", "shadowlab/inference/sampling.py, seeded_noise", noise, known, 0.0)
    dataset: Any = saved.task.open_data()
    batch = saved.task.collate([dataset[list(dataset.ids).index(name)]])
    encoded = saved.task.encode(batch)

    def predict(x: Tensor, times: Tensor) -> Tensor:
        given = _given(comparison, tensors, x, noise.to(run.device), times)
        return reference.predicted(comparison.model, given, "fp32")

    for steps in (1, _STEPS):
        latents = ref.objective.generate(predict, noise.to(run.device), steps)
        wanted = ref.decoded(latents, comparison.vae)
        place = "shadowlab/inference/sampling.py, sample"
        yield Quantity(f"picture after {steps} steps", place, sample(saved, encoded, noise, steps), wanted, 1e-2)
