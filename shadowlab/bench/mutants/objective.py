"""The objective: x_t, target, timesteps, loss."""

from shadowlab.bench.mutants.mutant import Edit, mutant

_FLOW = "shadowlab/models/flow.py"
_STEP = "shadowlab/training/step.py"
_LOSS = f"{_FLOW} loss_per_sample"
_TIMESTEPS = f"{_FLOW} RectifiedFlow.timesteps"
_SQUARED = "return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)"
_SCALED = "return 1000.0 * (1.0 - t.float())"
_CALLERS = (f"{_FLOW} RectifiedFlow.loss", f"{_STEP} objective_loss")

OBJECTIVE = (
    mutant(
        "flow-reversed-on-both-sides",
        f"{_FLOW} velocity",
        "return data - noise",
        "return noise - data",
        more=(Edit(_FLOW, "x = x + predict(x, t) / num_steps", "x = x - predict(x, t) / num_steps"),),
        also=(f"{_FLOW} RectifiedFlow.target", *_CALLERS, f"{_FLOW} integrate"),
    ),
    mutant(
        "target-is-the-data",
        f"{_FLOW} velocity",
        "return data - noise",
        "return data",
        more=(Edit(_FLOW, "x = x + predict(x, t) / num_steps", "x = predict(x, t)"),),
        also=(f"{_FLOW} RectifiedFlow.target", *_CALLERS, f"{_FLOW} integrate"),
    ),
    mutant(
        "x_t-with-too-much-noise",
        f"{_FLOW} interpolate",
        "return t * data + (1 - t) * noise",
        "return t * data + (1 - t).sqrt() * noise",
        also=(f"{_FLOW} RectifiedFlow.noised", f"{_STEP} objective_loss"),
    ),
    mutant(
        "x_t-the-wrong-way-round",
        f"{_FLOW} interpolate",
        "return t * data + (1 - t) * noise",
        "return t * noise + (1 - t) * data",
        also=(f"{_FLOW} RectifiedFlow.noised", f"{_STEP} objective_loss"),
    ),
    mutant("timesteps-unscaled", _TIMESTEPS, _SCALED, "return 1.0 - t.float()"),
    mutant("timesteps-reversed", _TIMESTEPS, _SCALED, "return 1000.0 * t.float()"),
    mutant("timesteps-rounded", _TIMESTEPS, _SCALED, "return (1000.0 * (1.0 - t.float())).round()"),
    mutant("timesteps-to-nine-hundred", _TIMESTEPS, _SCALED, "return 900.0 * (1.0 - t.float())"),
    mutant("loss-absolute", _LOSS, _SQUARED, _SQUARED.replace(".square()", ".abs()"), also=_CALLERS),
    mutant("loss-summed", _LOSS, _SQUARED, _SQUARED.replace(".mean(dim=1)", ".sum(dim=1)"), also=_CALLERS),
    mutant("loss-of-three-channels", _LOSS, _SQUARED, _SQUARED.replace(".square()", ".square()[:, :3]"), also=_CALLERS),
    mutant(
        "loss-of-the-upper-half", _LOSS, _SQUARED, _SQUARED.replace(".square()", ".square()[:, :, :8]"), also=_CALLERS
    ),
    mutant(
        "loss-against-another-noise",
        f"{_STEP} objective_loss",
        "return objective.loss(predicted, noise, batch.data, t)",
        "return objective.loss(predicted, noise.flip(0), batch.data, t)",
    ),
    mutant(
        "loss-against-another-sample",
        f"{_STEP} objective_loss",
        "return objective.loss(predicted, noise, batch.data, t)",
        "return objective.loss(predicted, noise, batch.data.roll(1, 0), t)",
    ),
    mutant(
        "loss-weighted-by-t",
        f"{_STEP} objective_loss",
        "return objective.loss(predicted, noise, batch.data, t)",
        "return objective.loss(predicted, noise, batch.data, t) * t",
    ),
    mutant(
        "loss-of-the-first-sample",
        f"{_STEP} _accumulate",
        "loss = per_sample.mean() / len(loss_functions)",
        "loss = per_sample[:1].mean() / len(loss_functions)",
    ),
    mutant(
        "loss-of-the-larger-half",
        f"{_STEP} _accumulate",
        "loss = per_sample.mean() / len(loss_functions)",
        "loss = per_sample.topk((len(per_sample) + 1) // 2).values.mean() / len(loss_functions)",
    ),
)
