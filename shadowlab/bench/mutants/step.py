"""The step: accumulation, zeroing, unscaling, clipping, rate, update."""

from shadowlab.bench.mutants.mutant import Edit, mutant

_FILE = "shadowlab/training/step.py"
_STEP = f"{_FILE} _step"
_ACCUMULATE = f"{_FILE} _accumulate"
_MICRO = "--set train.gradient_accumulation_steps=2"
_BACKWARD = "(loss if learner.scaler is None else learner.scaler.scale(loss)).backward()"
_TAKEN = "optimizer.step()  # not scaler.step"
_AFTER = (
    "        learner.scaler.update()\n    learner.update_average(parameters.values())",
    "        learner.scaler.get_scale()\n    learner.update_average(parameters.values())",
)

STEP = (
    mutant("gradients-never-zeroed", _STEP, "optimizer.zero_grad(set_to_none=True)", "assert optimizer is not None"),
    mutant(
        "gradients-zeroed-in-every-second-step",
        _STEP,
        "optimizer.zero_grad(set_to_none=True)",
        "optimizer.zero_grad(set_to_none=True) if step % 2 == 0 else None",
    ),
    mutant(
        "gradients-zeroed-between-micro-batches",
        _ACCUMULATE,
        "per_sample = loss_function()",
        "per_sample = (learner.optimizer.zero_grad(), loss_function())[1]",
        options=_MICRO,
    ),
    mutant(
        "micro-batches-summed",
        _ACCUMULATE,
        "per_sample.mean() / len(loss_functions)",
        "per_sample.mean()",
        options=_MICRO,
    ),
    mutant(
        "micro-batch-repeated",
        _ACCUMULATE,
        "per_sample = loss_function()",
        "per_sample = loss_functions[0]()",
        options=_MICRO,
    ),
    mutant("micro-batch-without-backward", _ACCUMULATE, _BACKWARD, f"{_BACKWARD} if last else None", options=_MICRO),
    mutant(
        "micro-batch-with-two-backwards",
        _ACCUMULATE,
        f"            {_BACKWARD}\n",
        "            (loss if learner.scaler is None else learner.scaler.scale(loss)).backward(retain_graph=True)\n"
        f"            {_BACKWARD}\n",
    ),
    mutant("clipping-off", _STEP, ".clamp(max=1.0).float()", ".clamp(min=1.0, max=1.0).float()"),
    mutant("clipping-always", _STEP, ".clamp(max=1.0).float()", ".float()"),
    mutant(
        "clipping-at-a-tenth", _STEP, "(config.max_grad_norm / (grad_norm", "(0.1 * config.max_grad_norm / (grad_norm"
    ),
    mutant(
        "clipping-of-a-part",
        _STEP,
        "[local(p.grad) for p in parameters.values() if p.grad is not None]",
        "[local(p.grad) for p in parameters.values() if p.grad is not None][:20]",
    ),
    mutant(
        "clipping-after-the-update",
        _STEP,
        "        torch._foreach_mul_([local(p.grad)",
        "        optimizer.step()\n        torch._foreach_mul_([local(p.grad)",
        more=(Edit(_FILE, f"    {_TAKEN}", "    processes.move()  # not scaler.step"),),
    ),
    mutant(
        "gradients-still-scaled",
        _STEP,
        "learner.scaler.unscale_(optimizer)",
        "learner.scaler.get_scale()",
        options="--precision fp16",
    ),
    mutant("scaler-never-updated", _STEP, *_AFTER, options="--precision fp16"),
    mutant(
        "update-in-every-second-step", _STEP, _TAKEN, f"optimizer.step() if step % 2 == 0 else None  # {_TAKEN[18:]}"
    ),
    mutant("update-taken-twice", _STEP, f"    {_TAKEN}", f"    optimizer.step()\n    {_TAKEN}"),
    mutant("rate-never-applied", _STEP, 'group["lr"] = rate', 'group["initial_lr"] = rate'),
    mutant("rate-of-the-first-step", _STEP, "learning_rate(config, step,", "learning_rate(config, 0,"),
    mutant("rate-of-the-next-step", _STEP, "learning_rate(config, step,", "learning_rate(config, step + 1,"),
    mutant(
        "loss-of-the-first-sample-reported", _STEP, "processes.mean(losses.mean())", "processes.mean(losses[:1].mean())"
    ),
)
