"""A golden run next to its specification, quantity by quantity in the order in which they are computed.

Each is judged given those before it, as they were seen and found right: the first that differs is where the fault is.

Legend: B samples of a micro-batch, h w latents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shadowlab.quantities import Quantity, same
from shadowlab.stages.check_forward import reference
from shadowlab.stages.check_forward.golden_run import GoldenRun, raw_vae
from shadowlab.stages.check_forward.listening import Forward, OptimizerStep
from shadowlab.stages.check_forward.reference import MicroBatch, Plan
from shadowlab.tasks import TaskReference

_PRECISION = "shadowlab/models/precision.py, Precision"
_STEP = "shadowlab/training/step.py"
_LOOP = "shadowlab/stages/train/train.py"
_ADAMW = "shadowlab/training/optimizer.py, adamw"
_ADAMW_8_BIT = "shadowlab/training/eight_bit.py, adamw8bit"
_ROUNDED = 1e-2
"""Of a moment in 8 bits, relative to the largest: half the widest step of its map of 256 values is 0.7 %."""
_LOOSENESS = {"fp32": 1.0, "tf32": 30.0, "bf16": 300.0, "fp16": 100.0}
"""Of what passes the model, where kernels may sum in another order."""


@dataclass(eq=False)
class TrainingComparison:
    """One process's view of a run."""

    run: GoldenRun
    plan: Plan
    reference: TaskReference
    model: nn.Module
    """A model of the same topology, in training mode; its weights are set to those that were seen."""
    train_ids: list[str] = field(default_factory=list)
    held_out_ids: list[str] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)
    """The average of the weights after the steps that were compared."""
    last: dict[str, Tensor] = field(default_factory=dict)
    """The weights after the last step that was compared."""
    updates: int = 0

    def __post_init__(self) -> None:
        ids, objects = (function(self.run.layout) for function in (self.reference.ids, self.reference.objects))
        train, held_out = reference.split(objects, self.plan.validation_fraction, self.plan.seed)
        self.train_ids, self.held_out_ids = [ids[i] for i in train], [ids[i] for i in held_out]
        self.vae, self.heard = raw_vae(self.run.task), self.run.heard
        self.precision = self.run.config.precision
        self.loose = _LOOSENESS[self.precision]
        self.is_8_bit = self.run.config.optimizer.name == "adamw8bit"
        self.optimizer = _ADAMW_8_BIT if self.is_8_bit else _ADAMW
        self.adam = reference.AdamW(self.plan)
        self.scale = reference.FIRST_SCALE if self.precision == "fp16" else 1.0
        self.steps_seen = list(self.heard.steps)
        self._encoded_samples: dict[str, dict[str, Tensor]] = {}

    def quantities(self) -> Iterator[Quantity]:
        """Of all steps."""
        plan, heard = self.plan, self.heard
        wanted = plan.max_steps * plan.accumulation
        yield Quantity("calls of the model that train", f"{_STEP}, _accumulate", len(heard.training), wanted)
        yield Quantity("batches encoded", f"{_LOOP}, _encode", len(heard.training_encodings), wanted)
        yield Quantity(
            "arithmetic of the VAE", "shadowlab/models/vae.py, ImageVae", heard.vae_dtypes or {"float32"}, {"float32"}
        )
        self.set(self.heard.first)
        self.frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        for step in range(plan.max_steps):
            yield from self._step(step)
        yield Quantity(
            "steps of the optimizer", f"{_STEP}, _step", len(heard.steps), len(heard.steps) - len(self.steps_seen)
        )
        for name in sorted(self.frozen):
            place = "shadowlab/models/surgery.py, freeze"
            yield Quantity(f"frozen {name} after training", place, heard.judged.get(name), heard.first[name], 0.0)

    def ids_at(self, positions: list[int]) -> list[str]:
        return [self.train_ids[reference.sample_at(p, len(self.train_ids), self.plan.seed)] for p in positions]

    @torch.no_grad()
    def encoded(self, ids: list[str]) -> dict[str, Tensor]:
        """What the reference makes of these samples, each (B, ...) on the run's device."""
        for one in ids:
            if one not in self._encoded_samples:
                self._encoded_samples[one] = self.reference.encoded(self.run.layout, [one], self.vae)
        own = [self._encoded_samples[one] for one in ids]
        return {name: torch.cat([each[name] for each in own]).to(self.run.device) for name in own[0]}

    def set(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])

    # Micro-batches

    def _step(self, step: int) -> Iterator[Quantity]:
        plan, count = self.plan, self.plan.accumulation
        blocks = reference.positions(plan, step, self.run.rank)
        for number, positions in enumerate(blocks):
            index = step * count + number
            name = f"step {step + 1}, micro-batch {number + 1}: "
            yield from self._encoded(name, index, positions)
            yield from self._asked(name, self.heard.training[index], step, positions)
        everyone = [block for rank in range(plan.world) for block in reference.positions(plan, step, rank)]
        micro_batches = [self._micro_batch(step, positions) for positions in everyone]
        first = self.run.rank * count
        for number in range(count):  # its own as they were seen, to the last bit: half types would make much of it
            one = self.heard.training[step * count + number]
            assert one.sample is not None and one.timesteps is not None, "compared above"
            micro_batches[first + number] = replace(
                micro_batches[first + number],
                sample=one.sample,
                timesteps=one.timesteps,
                tokens=one.tokens,
                embedding=one.embedding,
            )
        predictions, losses, gradients = reference.gradients(self.model, micro_batches, self.precision, self.scale)
        for number in range(count):
            seen = self.heard.training[step * count + number]
            own = predictions[first + number], losses[first + number]
            yield from self._answered(
                f"step {step + 1}, micro-batch {number + 1}: ", seen, micro_batches[first + number], own
            )
        ids = [name for block in sorted(everyone) for name in self.ids_at(block)]
        if self.steps_seen:  # before what is said of gradients: those of another model are none of these
            owned = [one for group in self.steps_seen[0].owned for one in group]
            place = "shadowlab/training/trainee.py, build_trainee"
            yield Quantity(f"step {step + 1}: parameters of the optimizer", place, sorted(owned), sorted(gradients))
        yield from self._recorded(step, torch.cat(losses), gradients, ids)
        if all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
            yield from self._updated(step, gradients)
        else:
            self.scale /= 2

    def _encoded(self, name: str, index: int, positions: list[int]) -> Iterator[Quantity]:
        encoding, layout = self.heard.training_encodings[index], self.run.layout
        ids = self.ids_at(positions)
        encoded = encoding.encoded
        yield Quantity(f"{name}samples", "shadowlab/data/loader.py, endless_batches", list(encoded.ids), ids)
        yield Quantity(f"{name}positions", f"{_LOOP}, _encode", encoded.positions.tolist(), positions)
        if encoding.batch is not None:
            for collation in self.heard.collations:
                if collation.batch is encoding.batch:
                    for one, own in zip(ids, collation.samples, strict=True):
                        yield from self.reference.read(layout, one, own)
            yield from self.reference.collated(layout, ids, encoding.batch)
        wanted = self.reference.parts(self.encoded(ids))
        for part, (tensor, place) in self.reference.parts(encoded.tensors()).items():
            yield Quantity(f"{name}{part}", place, tensor, wanted[part][0], 1e-4)
            yield Quantity(f"{name}dtype of {part}", place, str(tensor.dtype), "torch.float32")

    def _asked(self, name: str, seen: Forward, step: int, positions: list[int]) -> Iterator[Quantity]:
        """Noise, t, x_t, and what the model is given."""
        plan, objective = self.plan, self.reference.objective
        encoded = self.heard.training_encodings[self.heard.training.index(seen)].encoded
        shape = tuple(encoded.data.shape[1:])
        noise = torch.stack([reference.noise_at(p, shape, plan.seed) for p in positions])
        t = reference.times(plan, step, positions)
        place = f"{_STEP}, objective_loss"
        yield Quantity(f"{name}noise", place, seen.noise, noise, 0.0, partial(self._whose_noise, seen.noise, shape))
        yield Quantity(f"{name}t", f"{_STEP}, sample_times", seen.t, t, 1e-6)
        data = encoded.data.cpu()
        yield Quantity(f"{name}data of x_t", place, seen.data, data, 1e-6)
        yield Quantity(f"{name}x_t", objective.places["noised"], seen.x_t, objective.noised(noise, data, t), 1e-5)
        yield Quantity(f"{name}t of the timesteps", place, seen.times, t, 1e-6)
        wanted = self._micro_batch(step, positions, encoded=encoded)
        adapter = "shadowlab/models/adapter.py, predict"
        timesteps = seen.timesteps if seen.timesteps is None else seen.timesteps.reshape(-1)
        yield Quantity(f"{name}timesteps", objective.places["timesteps"], timesteps, wanted.timesteps, 1e-6)
        yield Quantity(f"{name}dtype of timesteps", adapter, _dtype(seen.timesteps), "torch.float32")
        yield Quantity(
            f"{name}arithmetic of weights", _PRECISION, seen.dtypes.get("weights"), "float32"
        )  # rounds inputs
        giver = f"{_STEP}, objective_loss" if _has_target_in(seen, wanted.sample) else adapter
        yield Quantity(f"{name}input of the model", giver, seen.sample, wanted.sample, 1e-4)
        yield Quantity(f"{name}embedding given to the model", adapter, seen.embedding, wanted.embedding, 1e-6)
        yield Quantity(f"{name}tokens given to the model", adapter, seen.tokens, wanted.tokens, 1e-6)
        yield from self._arithmetic(name, seen)

    def _arithmetic(self, name: str, seen: Forward) -> Iterator[Quantity]:
        grid = "shadowlab/evaluation/fixed_grid.py, FixedGrid.evaluate"
        yield Quantity(f"{name}training mode", grid, seen.training_mode, True)
        half = reference.AUTOCAST[self.precision]
        low = "float32" if half is None else str(half).removeprefix("torch.")
        wanted = {"conv_in": low, "conv_norm_out": "float32", "conv_out": low}
        for layer, dtype in wanted.items():
            place = f"{_PRECISION}.{'prepare' if layer == 'conv_norm_out' else 'autocast'}"
            yield Quantity(f"{name}arithmetic of {layer} in {self.precision}", place, seen.dtypes.get(layer), dtype)
        yield Quantity(f"{name}TF32 allowed", f"{_PRECISION}.apply_to_backend", seen.tf32, self.precision == "tf32")

    def _micro_batch(self, step: int, positions: list[int], encoded: Any = None) -> MicroBatch:
        """From the reference's own latents, or from those of `encoded`."""
        plan, objective, device = self.plan, self.reference.objective, self.run.device
        tensors = self.encoded(self.ids_at(positions)) if encoded is None else encoded.tensors()
        data = tensors["data"]
        noise = torch.stack([reference.noise_at(p, data.shape[1:], plan.seed) for p in positions]).to(device)
        t = reference.times(plan, step, positions).to(device)
        inputs = [objective.noised(noise, data, t), *(tensors[k] for k in ("concatenated",) if k in tensors)]
        return MicroBatch(
            sample=torch.cat(inputs, dim=1),
            timesteps=objective.timesteps(t),
            tokens=tensors.get("tokens"),
            embedding=tensors.get("embedding"),
            loss=lambda prediction: objective.loss(prediction, noise, data, t),
        )

    def _whose_noise(self, seen: Tensor | None, shape: tuple[int, ...]) -> str:
        """Which positions, or which one, the noise belongs to."""
        if seen is None or seen.ndim != 4:
            return ""
        known = {
            p: reference.noise_at(p, shape, self.plan.seed) for p in range(self.plan.max_steps * self.plan.global_batch)
        }
        owners = [next((p for p, noise in known.items() if same(row.cpu(), noise)), None) for row in seen]
        if all(owner is not None for owner in owners):
            return f"is that of the positions {', '.join(map(str, owners))}"
        return "is the same for every sample" if len(seen) > 1 and same(seen[:1].expand_as(seen), seen) else ""

    # Prediction, loss, gradient

    def _answered(self, name: str, seen: Forward, one: MicroBatch, own: tuple[Tensor, Tensor]) -> Iterator[Quantity]:
        prediction, losses = own
        yield Quantity(
            f"{name}prediction", "shadowlab/models/adapter.py, predict", seen.prediction, prediction, 1e-4 * self.loose
        )
        asked = seen.noise, seen.data, seen.t  # of x_t, found right
        for what, given, wanted in zip(("noise", "data", "t"), seen.loss_given or (), asked, strict=False):
            yield Quantity(f"{name}{what} of the loss", f"{_STEP}, objective_loss", given, wanted, 1e-6)
        place = self.reference.objective.places["loss"]
        yield Quantity(f"{name}loss of each sample", place, seen.losses, losses, 1e-4 * self.loose)
        leaf = seen.prediction.detach().clone().requires_grad_() if seen.prediction is not None else prediction
        (one.loss(leaf).mean() / self.plan.accumulation * self.scale).backward()
        yield Quantity(f"{name}gradient of the prediction", f"{_STEP}, _accumulate", seen.gradient, leaf.grad, 1e-4)

    def _recorded(self, step: int, losses: Tensor, gradients: dict[str, Tensor], ids: list[str]) -> Iterator[Quantity]:
        """What metrics.jsonl says of a step; on the first process."""
        record = next((r for r in self.run.records if r.get("kind") == "train" and r.get("step") == step + 1), None)
        if record is None:
            return
        name, finite = f"step {step + 1}: recorded ", True
        yield Quantity(f"{name}samples", "shadowlab/training/telemetry.py, Telemetry._seen", record["samples"], ids)
        yield Quantity(f"{name}loss", f"{_STEP}, _step", float(record["loss"]), float(losses.mean()), 1e-3 * self.loose)
        finite = all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        yield Quantity(f"{name}skip", f"{_STEP}, _step", record["skipped"], not finite)
        rate = reference.learning_rate(self.plan, step)
        yield Quantity(f"{name}learning rate", f"{_STEP}, _step", float(record["learning_rate"]), rate, 1e-5)
        if finite:
            norm = reference.norm_of(gradients)
            seen = float(record["grad_norm"])
            place = self._place_of_gradient(step, lambda: _is_off_by(seen / max(norm, 1e-30), self.scale))
            yield Quantity(f"{name}gradient norm", place, seen, norm, 1e-3 * self.loose)

    # Optimizer

    def _updated(self, step: int, gradients: dict[str, Tensor]) -> Iterator[Quantity]:
        plan, name = self.plan, f"step {step + 1}: "
        yield Quantity(f"{name}steps of the optimizer", f"{_STEP}, _step", len(self.steps_seen) > 0, True)
        seen = self.steps_seen.pop(0)
        yield Quantity(
            f"{name}micro-batches before it", f"{_STEP}, _step", seen.num_forwards, (step + 1) * plan.accumulation
        )
        before = {one: p.detach() for one, p in self.model.named_parameters() if one in gradients}
        yield from self._each(f"{name}weights before it", f"{_STEP}, _step", seen.before, before, 1e-6)
        wanted = reference.clipped(gradients, plan.max_grad_norm)
        limit = 1e-3 * self.loose * max(float(gradient.abs().amax()) for gradient in wanted.values())
        how = partial(self._whose_gradient, seen, gradients, limit)
        place = self._place_of_gradient(step, lambda: bool(how()))
        yield from self._each(f"{name}gradient", place, seen.gradients, wanted, 0.0, limit, how)
        rate = reference.learning_rate(plan, step)
        for group in seen.groups:
            yield Quantity(f"{name}learning rate of the optimizer", f"{_STEP}, _step", float(group["lr"]), rate, 1e-6)
            options = [*group["betas"], group["eps"], group["weight_decay"]]
            known = [plan.beta1, plan.beta2, plan.eps, plan.weight_decay]
            yield Quantity(f"{name}betas, eps, decay", self.optimizer, options, known)
        after = self.adam.step(seen.before, seen.gradients, rate)
        for kind, moments in (("exp_avg", self.adam.mean), ("exp_avg_sq", self.adam.square)):
            place = self.optimizer  # its rates are right, and what it was given
            kept = seen.moments.get(kind, {})
            yield from self._each(f"{name}{kind}", place, kept, moments, _ROUNDED if self.is_8_bit else 1e-4)
            if self.is_8_bit:  # the next step goes on from what was kept of them
                moments |= kept
        yield from self._each(f"{name}weights after it", f"{_STEP}, _step", seen.after, after, 0.0, 2e-3 * rate + 1e-7)
        ceiling = plan.ema_decay
        if ceiling is not None:
            self.average = reference.averaged(self.average, seen.after, self.updates, ceiling)
        self.updates += 1
        self.last = seen.after
        self.set(seen.after)

    def _each(
        self,
        name: str,
        place: str,
        seen: dict[str, Tensor],
        wanted: dict[str, Tensor],
        tolerance: float,
        limit: float = 0.0,
        how: Any = None,
    ) -> Iterator[Quantity]:
        """Parameter by parameter. limit: an absolute tolerance, in place of the relative one."""
        for one, tensor in wanted.items():
            relative = limit / max(float(tensor.abs().amax()), 1e-6) if limit else tolerance
            yield Quantity(f"{name} of {one}", place, seen.get(one), tensor, relative, how)

    def _place_of_gradient(self, step: int, is_multiple: Callable[[], bool]) -> str:
        """Of one that is wrong though each prediction's is right. What is unscaled, clipped or not cleared before the
        next step keeps its direction, or shows from the second step on; what is summed wrongly shows in the first."""
        return f"{_STEP}, _step" if step or is_multiple() else f"{_STEP}, _accumulate"

    def _whose_gradient(self, seen: OptimizerStep, gradients: dict[str, Tensor], limit: float) -> str:
        """Whether it was not clipped, still has the one before, or is a multiple."""
        found, norm = seen.gradients, reference.norm_of(gradients)
        own = reference.norm_of(found)
        if all(same(found[name], gradient, 1e-2) for name, gradient in gradients.items() if name in found):
            return f"is not clipped: the norm of all is {own:.4g}, not {self.plan.max_grad_norm:g}"
        scaled = {name: gradient * (own / norm) for name, gradient in gradients.items()}
        if all(name in found and float((found[name] - g).abs().amax()) <= 10 * limit for name, g in scaled.items()):
            return f"is {own / min(norm, self.plan.max_grad_norm):.4g} times what it should be"
        return ""


def _is_off_by(ratio: float, scale: float) -> bool:
    """Whether a number is off by the gradient scale, which is not 1."""
    return scale != 1.0 and abs(ratio / scale - 1) < 0.01


def _dtype(tensor: Tensor | None) -> str:
    return "" if tensor is None else str(tensor.dtype)


def _has_target_in(seen: Forward, wanted: Tensor) -> bool:
    """Whether a multiple of the target is what the model's input has too much: nothing behind the step knows it."""
    if seen.sample is None or seen.data is None or seen.sample.shape != wanted.shape:
        return False
    channels = seen.data.shape[1]
    off = (seen.sample.double() - wanted.double())[:, :channels].flatten().cpu()
    data = seen.data.double().flatten().cpu()
    share = torch.dot(off, data) / torch.dot(data, data).clamp(min=1e-12)
    return float(share.abs()) > 1e-3 and float((off - share * data).norm()) < 1e-2 * float(off.norm())
