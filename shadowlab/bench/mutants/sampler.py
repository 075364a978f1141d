"""Generation: the sampler's times and step width, its noise, and the weights it is given."""

from shadowlab.bench.mutants.mutant import Stage, mutant

_INTEGRATE = "shadowlab/models/flow.py integrate"
_SAMPLING = "shadowlab/inference/sampling.py"
_STEPS: tuple[Stage, ...] = ("check-forward",)
_CALLERS = ("shadowlab/models/flow.py RectifiedFlow.generate", f"{_SAMPLING} sample")
_WIDTH = "x = x + predict(x, t) / num_steps"
_TIME = "step / num_steps, device=noise.device"

SAMPLER = (
    mutant("sampler-step-too-short", _INTEGRATE, _WIDTH, "x = x + predict(x, t) / (num_steps + 1)", also=_CALLERS),
    mutant(
        "sampler-step-too-long-but-for-one",
        _INTEGRATE,
        _WIDTH,
        "x = x + predict(x, t) / max(1, num_steps - 1)",
        stages=_STEPS,
        also=_CALLERS,
    ),
    mutant(
        "sampler-time-stands-still", _INTEGRATE, _TIME, "0.0 * step, device=noise.device", stages=_STEPS, also=_CALLERS
    ),
    mutant(
        "sampler-time-runs-backwards", _INTEGRATE, _TIME, "1.0 - step / num_steps, device=noise.device", also=_CALLERS
    ),
    mutant(
        "sampler-time-one-step-late", _INTEGRATE, _TIME, "(step + 1) / num_steps, device=noise.device", also=_CALLERS
    ),
    mutant(
        "sampler-time-in-the-middle-of-the-step",
        _INTEGRATE,
        _TIME,
        "(step + 0.5) / num_steps, device=noise.device",
        also=_CALLERS,
    ),
    mutant(
        "sampler-takes-one-step",
        _INTEGRATE,
        "for step in range(num_steps):",
        "for step in range(1):",
        stages=_STEPS,
        also=_CALLERS,
    ),
    mutant(
        "sampler-starts-from-the-last-noise",
        _INTEGRATE,
        "predict(x, t)",
        "predict(noise, t)",
        stages=_STEPS,
        also=_CALLERS,
    ),
    mutant(
        "generated-from-too-little-noise",
        f"{_SAMPLING} sample",
        "objective.generate(predicted_at, noise.to(device, torch.float32), steps)",
        "objective.generate(predicted_at, 0.7 * noise.to(device, torch.float32), steps)",
        stages=_STEPS,
    ),
    mutant(
        "generated-in-another-number-of-steps",
        f"{_SAMPLING} sample",
        "objective.generate(predicted_at, noise.to(device, torch.float32), steps)",
        "objective.generate(predicted_at, noise.to(device, torch.float32), 1)",
        stages=_STEPS,
    ),
    mutant(
        "generated-from-unscaled-latents",
        f"{_SAMPLING} sample",
        "model.task.decode(latents)",
        "model.task.decode(latents * model.task.vae.scaling_factor)",
        stages=_STEPS,
    ),
    mutant(
        "generated-with-the-same-noise",
        f"{_SAMPLING} seeded_noise",
        'torch.Generator("cpu").manual_seed(seed)',
        'torch.Generator("cpu").manual_seed(0)',
        stages=_STEPS,
    ),
    mutant(
        "raw-weights-in-place-of-the-average",
        "shadowlab/inference/model.py open_model",
        "kind: Any = weights if weights in found.unets else next(iter(found.unets))",
        'kind: Any = "raw" if "raw" in found.unets else next(iter(found.unets))',
        stages=("check-forward", "train"),
        says=("raw", "EMA", "average"),
    ),
)
