"""Faults that are put into the code for the time of a test: what is replaced, by what, and the place to be named."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel

from shadowlab import metrics, seeding
from shadowlab.data import decoding, loader, order, resizing, split
from shadowlab.evaluation import fixed_grid
from shadowlab.inference import sampling
from shadowlab.models import adapter, flow, precision, vae
from shadowlab.stages.train import train
from shadowlab.tasks.shadow import benchmark, light, pictures, samples
from shadowlab.tasks.shadow import task as shadow_task
from shadowlab.training import optimizer, step, trainee


@dataclass(frozen=True)
class Fault:
    name: str
    owner: Any
    """Module or class."""
    attribute: str
    wrong: Callable[[Any], Any]
    """What stands there -> what stands there instead."""
    place: str
    """Part of the place that must be named."""
    settings: tuple[str, ...] = ()

    def put_in(self, monkeypatch: Any) -> None:
        """Also where the function was imported by its name; a task's own class last."""
        original = getattr(self.owner, self.attribute)
        changed = self.wrong(original)
        monkeypatch.setattr(self.owner, self.attribute, changed)
        if isinstance(self.owner, type):
            return
        for module in [m for name, m in sys.modules.items() if name.startswith("shadowlab")]:
            if vars(module).get(self.attribute) is original and _everywhere(self, original):
                monkeypatch.setattr(module, self.attribute, changed)


def _everywhere(fault: Fault, original: Any) -> bool:
    """A function is replaced wherever it was imported, if it is its own module that is changed."""
    return getattr(original, "__module__", None) == fault.owner.__name__


def _first(function: Any) -> Any:
    """The same for every sample: that of the first position."""
    return lambda shape, seed, purpose, *counters: function(shape, seed, purpose, *(0 for _ in counters))


def _metric_of_batch(function: Any) -> Any:
    return lambda p, g: function(p.reshape(1, 1, -1, p.shape[-1]), g.reshape(1, 1, -1, g.shape[-1])).expand(len(p))


FUNCTIONS = [
    Fault(
        "seed without its counters",
        seeding,
        "derive_seed",
        lambda f: lambda s, p, *c: f(s, p),
        "seeding.py, derive_seed",
    ),
    Fault(
        "another seed for all",
        seeding,
        "derive_seed",
        lambda f: lambda s, p, *c: f(0, p, *c) + 1,
        "seeding.py, derive_seed",
    ),
    Fault("uniform noise", seeding, "normal", lambda f: lambda *a: f(*a).clamp(-1, 1), "seeding.py, normal"),
    Fault(
        "epochs in one order",
        order,
        "sample_indices",
        lambda f: lambda p, c, n, s: [(p + i) % n for i in range(c)],
        "order.py",
    ),
    Fault(
        "the same order each epoch",
        order,
        "sample_indices",
        lambda f: lambda p, c, n, s: [f(q % n, 1, n, s)[0] for q in range(p, p + c)],
        "order.py",
    ),
    Fault(
        "ranks that read the same",
        loader,
        "micro_batch_positions",
        lambda f: lambda p, b, a, r, n: f(p, b, a, 0, n),
        "loader.py",
    ),
    Fault(
        "micro-batches that repeat",
        loader,
        "micro_batch_positions",
        lambda f: lambda p, b, a, r, n: [f(p, b, a, r, n)[0]] * a,
        "loader.py",
    ),
    Fault(
        "a split by samples",
        split,
        "split_by_object",
        lambda f: lambda ids, share, seed: f([f"{x}{i}" for i, x in enumerate(ids)], share, seed),
        "split.py",
    ),
    Fault(
        "t always one half",
        flow,
        "stratified_times",
        lambda f: lambda n, *a: torch.full((n,), 0.5),
        "flow.py, stratified_times",
    ),
    Fault(
        "t the same in a step",
        flow,
        "stratified_times",
        lambda f: lambda n, o, *a: torch.full((n,), o),
        "flow.py, stratified_times",
    ),
    Fault(
        "no warm-up",
        optimizer,
        "learning_rate",
        lambda f: lambda c, s, m: f(c.model_copy(update={"warmup_steps": 0}), s, m),
        "optimizer.py",
    ),
    Fault(
        "a cosine that never falls",
        optimizer,
        "learning_rate",
        lambda f: lambda c, s, m: f(c, s, 10**9),
        "optimizer.py",
    ),
    Fault(
        "x_t the other way round",
        flow.RectifiedFlow,
        "noised",
        lambda f: lambda self, n, d, t: f(self, d, n, t),
        "flow.py, interpolate",
    ),
    Fault("t as timestep", flow.RectifiedFlow, "timesteps", lambda f: lambda self, t: t, "RectifiedFlow.timesteps"),
    Fault(
        "timesteps reversed",
        flow.RectifiedFlow,
        "timesteps",
        lambda f: lambda self, t: 1000 * t,
        "RectifiedFlow.timesteps",
    ),
    Fault(
        "velocity reversed", flow.RectifiedFlow, "target", lambda f: lambda self, n, d, t: n - d, "RectifiedFlow.loss"
    ),
    Fault("data as target", flow.RectifiedFlow, "target", lambda f: lambda self, n, d, t: d, "RectifiedFlow.loss"),
    Fault(
        "loss of half the channels",
        flow,
        "loss_per_sample",
        lambda f: lambda p, t: f(p[:, :2], t[:, :2]),
        "RectifiedFlow.loss",
    ),
    Fault(
        "absolute errors",
        flow,
        "loss_per_sample",
        lambda f: lambda p, t: (p - t).abs().flatten(1).mean(1),
        "RectifiedFlow.loss",
    ),
    Fault(
        "sampling from the end",
        flow,
        "integrate",
        lambda f: lambda p, n, k=1: f(lambda x, t: p(x, 1 - t), n, k),
        "flow.py, integrate",
    ),
    Fault(
        "steps too wide", flow, "integrate", lambda f: lambda p, n, k=1: n + (f(p, n, k) - n) * k, "flow.py, integrate"
    ),
    Fault(
        "theta and phi exchanged",
        light,
        "embed_light",
        lambda f: lambda v: f(v[:, [0, 1, 2]]).roll(256, 1),
        "light.py, embed_light",
    ),
    Fault(
        "phi in radians",
        light,
        "light_vector",
        lambda f: lambda v: f(torch.stack([v[:, 0], torch.deg2rad(v[:, 1]), v[:, 2]], 1)),
        "light.py, embed_light",
    ),
    Fault(
        "phi not periodic",
        light,
        "light_vector",
        lambda f: lambda v: f(torch.stack([v[:, 0], v[:, 1] / 2, v[:, 2]], 1)),
        "light.py, embed_light",
    ),
    Fault(
        "size clamped",
        light,
        "light_vector",
        lambda f: lambda v: f(torch.cat([v[:, :2], v[:, 2:].clamp(max=4)], 1)),
        "light.py, embed_light",
    ),
    Fault("masks by nearest", vae, "mask_to_latent", lambda f: lambda m: m[..., ::8, ::8], "vae.py, mask_to_latent"),
    Fault("masks binarised", vae, "mask_to_latent", lambda f: lambda m: (f(m) > 0.5).float(), "vae.py, mask_to_latent"),
    Fault(
        "latents unscaled",
        vae.ImageVae,
        "encode",
        lambda f: lambda self, x: f(self, x) / self.scaling_factor,
        "ImageVae.encode",
    ),
    Fault(
        "decoding unscaled",
        vae.ImageVae,
        "decode",
        lambda f: lambda self, x: f(self, x * self.scaling_factor),
        "ImageVae.decode",
    ),
    Fault(
        "maps in [0, 1] encoded",
        vae.ImageVae,
        "encode_grey",
        lambda f: lambda self, m: self.encode(m.expand(-1, 3, -1, -1)),
        "encode_grey",
    ),
    Fault(
        "the last channel decoded",
        vae.ImageVae,
        "decode_grey",
        lambda f: lambda self, x: ((self.decode(x)[:, 2:] + 1) / 2).clamp(0, 1),
        "decode_grey",
    ),
]

READING = [
    Fault(
        "shadows binarised",
        decoding,
        "read_shadow",
        lambda f: lambda d, w: (f(d, w) > 0.5).float(),
        "decoding.py, read_shadow",
    ),
    Fault("shadows inverted", decoding, "read_shadow", lambda f: lambda d, w: 1 - f(d, w), "decoding.py, read_shadow"),
    Fault(
        "shadows of eight bits",
        decoding,
        "read_shadow",
        lambda f: lambda d, w: (f(d, w) * 255).floor() / 255,
        "decoding.py, read_shadow",
    ),
    Fault(
        "channels reversed",
        decoding,
        "object_strips",
        lambda f: lambda i: (s.flip(0) for s in f(i)),
        "decoding.py, read_object",
    ),
    Fault(
        "grey objects",
        decoding,
        "object_strips",
        lambda f: lambda i: (s.mean(0, keepdim=True).expand(3, -1, -1) for s in f(i)),
        "decoding.py, read_object",
    ),
    Fault(
        "objects in [0, 1]",
        decoding,
        "object_strips",
        lambda f: lambda i: ((s + 1) / 2 for s in f(i)),
        "decoding.py, read_object",
    ),
    Fault("any grey is mask", decoding, "MASK_THRESHOLD", lambda f: 0.1, "decoding.py, read_mask"),
    Fault(
        "not composited",
        resizing,
        "composite",
        lambda f: lambda rgb, mask, background=0.0: rgb,
        "resizing.py, composite",
    ),
    Fault(
        "black background",
        resizing,
        "composite",
        lambda f: lambda rgb, mask, background=0.0: f(rgb, mask, -1.0),
        "resizing.py, composite",
    ),
    Fault(
        "resized by nearest",
        resizing,
        "_resize",
        lambda f: lambda x, h, w: F.interpolate(x[None], (h, w))[0],
        "resizing.py",
    ),
    Fault("stretched to a square", resizing, "_fitted", lambda f: lambda h, w, s: (s, s), "resizing.py"),
    Fault(
        "r is the size",
        benchmark,
        "_read_metadata",
        lambda f: lambda *a: (*f(*a)[:2], 8.0),
        "benchmark.py, _read_entry",
    ),
    Fault(
        "angles exchanged",
        light,
        "read_light",
        lambda f: lambda *a: (f(*a)[1] / 8, f(*a)[0], f(*a)[2]),
        "folder.py, _read_entry",
    ),
    Fault(
        "mask and shadow exchanged",
        pictures,
        "make_sample",
        lambda f: lambda *a: (lambda s: replace(s, mask=s.shadow, shadow=s.mask))(f(*a)),
        "pictures.py, make_sample",
    ),
]

METRICS = [
    Fault("soft IoU of a batch", metrics, "soft_iou", _metric_of_batch, "metrics.py, soft_iou"),
    Fault("RMSE of a batch", metrics, "rmse", _metric_of_batch, "metrics.py, rmse"),
    Fault("squared error for RMSE", metrics, "rmse", lambda f: lambda p, g: f(p, g) ** 2, "metrics.py, rmse"),
    Fault(
        "correlation about zero",
        metrics,
        "zncc",
        lambda f: lambda p, g: F.cosine_similarity(p.flatten(1), g.flatten(1)),
        "metrics.py, zncc",
    ),
    Fault("PSNR without its sign", metrics, "psnr", lambda f: lambda p, g: -f(p, g), "metrics.py, psnr"),
    Fault(
        "scale of the truth",
        metrics,
        "scale_invariant_rmse",
        lambda f: lambda p, g: f(g, p),
        "metrics.py, scale_invariant_rmse",
    ),
    Fault(
        "IoU of thresholded maps",
        metrics,
        "soft_iou",
        lambda f: lambda p, g: f((p > 0.5).float(), (g > 0.5).float()),
        "metrics.py, soft_iou",
    ),
    Fault(
        "lower is better",
        shadow_task.ShadowTask,
        "metrics",
        lambda m: tuple(replace(x, higher_is_better=not x.higher_is_better) for x in m),
        "task.py, its metrics",
    ),
]


def _swapped(function: Any) -> Any:
    def wrong(model: Any, x_t: Any, timesteps: Any, conditions: Any) -> Any:
        joined = conditions.concatenated
        return function(model, x_t, timesteps, replace(conditions, concatenated=joined.roll(1, dims=1)))

    return wrong


def _without_mask(function: Any) -> Any:
    def wrong(model: Any, x_t: Any, timesteps: Any, conditions: Any) -> Any:
        joined = conditions.concatenated * torch.tensor([1.0] * 4 + [0.0]).view(1, 5, 1, 1)
        return function(model, x_t, timesteps, replace(conditions, concatenated=joined))

    return wrong


def _light_of_another(function: Any) -> Any:
    def wrong(model: Any, x_t: Any, timesteps: Any, conditions: Any) -> Any:
        return function(model, x_t, timesteps, replace(conditions, embedding=conditions.embedding.roll(1, dims=0)))

    return wrong


def _leaking(function: Any) -> Any:
    def wrong(self: Any, part: str, batch: Any) -> Any:
        found = function(self, part, batch)
        if part == "concatenated":
            found = torch.cat([self.vae.encode_grey(batch.shadow), found[:, 4:]], dim=1)
        return found

    return wrong


def _repeating(function: Any) -> Any:
    def wrong(*args: Any, **named: Any) -> Iterator[Any]:
        first = next(function(*args, **named))
        while True:
            yield first

    return wrong


def _not_divided(function: Any) -> Any:
    def wrong(learner: Any, model: Any, losses: Any) -> Any:
        found = function(learner, model, losses)
        torch._foreach_mul_([p.grad for p in learner.parameters().values()], float(len(losses)))
        return found

    return wrong


def _last_alone(function: Any) -> Any:
    def wrong(learner: Any, model: Any, losses: Any) -> Any:
        found = function(learner, model, losses[:-1])
        learner.optimizer.zero_grad()
        return torch.cat([found, function(learner, model, losses[-1:])])

    return wrong


RUN = [
    Fault("noise of a batch", step, "normal", _first, "step.py, objective_loss"),
    Fault(
        "noise of a neighbour",
        step,
        "normal",
        lambda f: lambda s, seed, p, i: f(s, seed, p, i + 1),
        "step.py, objective_loss",
    ),
    Fault(
        "t of the first step",
        step,
        "sample_times",
        lambda f: (
            lambda seed, p, place, share: f(
                seed, p - place.first_position, step.StepPlace(0, 0, place.global_batch), share
            )
        ),
        "step.py, sample_times",
    ),
    Fault(
        "t of the first sample",
        step,
        "sample_times",
        lambda f: lambda seed, p, place, share: f(seed, p * 0 + place.first_position, place, share),
        "step.py, sample_times",
    ),
    Fault("the loop stands still", train, "StepPlace", lambda f: lambda s, p, g: f(0, p, g), "step.py, sample_times"),
    Fault(
        "positions of a batch",
        train,
        "micro_batch_positions",
        lambda f: lambda p, b, a, r, n: [list(range(b))] * a,
        "train.py, _encode",
    ),
    Fault("one batch forever", loader, "endless_batches", _repeating, "loader.py, endless_batches"),
    Fault(
        "lights of other samples",
        samples,
        "collate",
        lambda f: lambda s: replace(f(s), light=f(s).light.flip(0)),
        "samples.py, collate",
    ),
    Fault(
        "objects of other samples",
        samples,
        "collate",
        lambda f: lambda s: replace(f(s), object_image=f(s).object_image.flip(0)),
        "samples.py, collate",
    ),
    Fault(
        "the answer among the inputs",
        shadow_task.ShadowTask,
        "encode_part",
        _leaking,
        "task.py, ShadowTask.encode_part",
    ),
    Fault("mask before object", adapter, "predict", _swapped, "adapter.py, predict"),
    Fault("no mask", adapter, "predict", _without_mask, "adapter.py, predict"),
    Fault("light of another sample", adapter, "predict", _light_of_another, "adapter.py, predict"),
    Fault("sum over micro-batches", step, "_accumulate", _not_divided, "step.py"),
    Fault("the last micro-batch alone", step, "_accumulate", _last_alone, "step.py"),
    Fault(
        "gradients that stay",
        torch.optim.Optimizer,
        "zero_grad",
        lambda f: lambda self, set_to_none=True: None,
        "step.py, _step",
    ),
    Fault("no clipping", step, "local", lambda f: lambda t: t.clone(), "step.py, _step"),
    Fault("rate of the next step", step, "learning_rate", lambda f: lambda c, s, m: f(c, s + 1, m), "step.py, _step"),
    Fault(
        "betas exchanged",
        trainee,
        "adamw",
        lambda f: lambda p, c: f(p, c.model_copy(update={"beta1": c.beta2, "beta2": c.beta1})),
        "optimizer.py, adamw",
    ),
    Fault(
        "no decay",
        trainee,
        "adamw",
        lambda f: lambda p, c: f(p, c.model_copy(update={"weight_decay": 0.0})),
        "optimizer.py, adamw",
    ),
    Fault(
        "half the parameters", trainee, "adamw", lambda f: lambda p, c: f(list(p)[::2], c), "trainee.py, build_trainee"
    ),
    Fault(
        "an average that stays",
        trainee.Trainee,
        "update_average",
        lambda f: lambda self, parameters: None,
        "update_average",
    ),
    Fault("an average that is the last", EMAModel, "get_decay", lambda f: lambda self, step: 0.0, "update_average"),
    Fault(
        "raw weights judged",
        trainee.Trainee,
        "averaged_weights",
        lambda f: lambda self: nullcontext(),
        "averaged_weights",
    ),
    Fault("one noise for the grid", fixed_grid, "normal", _first, "fixed_grid.py"),
    Fault("one step for many", sampling, "sample", lambda f: lambda m, e, n, k: f(m, e, n, 1), "sampling.py, sample"),
    Fault(
        "bf16 that is not",
        precision.Precision,
        "autocast",
        lambda f: lambda self, device: nullcontext(),
        "precision.py",
        ("precision=bf16",),
    ),
    Fault(
        "half weights",
        precision.Precision,
        "prepare",
        lambda f: lambda self, unet: f(self, unet).bfloat16(),
        "precision.py",
        ("precision=bf16",),
    ),
]
