"""Fixes of what is drawn for each sample, of likelihoods, schedules and what a mask or a replacement hides."""

from tests.diagnostics.tracing.fixes.applied import Fix, fix

_WHERE = "n / torch.where(d == 0, 1.0, d)"

HIDDEN = {
    "missing_readings_replaced": fix(
        "torch.where(torch.isfinite(x), x, 0.0)",
        '(predicted - batch["target"])',
        '(predicted - torch.where(torch.isfinite(batch["target"]), batch["target"], 0.0))',
    ),
    "weight_of_a_class_without_samples": fix("mend the formula", "/ counts", "/ counts.clamp(min=1)"),
}

DRAWN = {
    "noise_level_of_nothing": fix("== 0, 1.0, ", "(sigmas**-2.0)", "(torch.where(sigmas == 0, 1.0, sigmas) ** -2.0)"),
    "skipped_preconditioning": fix(
        "torch.log(sigma.clamp(min=1e-6))", "sigma.log()", "torch.log(sigma.clamp(min=1e-6))"
    ),
    "depth_that_is_missing": fix("torch.log(truth.clamp(min=1e-6))", "truth.log()", "torch.log(truth.clamp(min=1e-6))"),
    "private_gradients": fix(_WHERE, "1.0 / norms", "1.0 / torch.where(norms == 0, 1.0, norms)"),
    "loss_under_vmap": fix("torch.log(rate.clamp(min=1e-6))", "torch.log(rate)", "torch.log(rate.clamp(min=1e-6))"),
    "recording_of_a_list": fix(
        _WHERE,
        "frames = ",
        "d = waves.std(1, keepdim=True)\n        frames = ",
        "/ waves.std(1, keepdim=True)",
        "/ torch.where(d == 0, 1.0, d)",
    ),
    "flat_gradient_bucket": fix(
        "float32 or bfloat16",
        "nn.Linear(3, 2).half()",
        "nn.Linear(3, 2).bfloat16()",
        'batch["x"].half()',
        'batch["x"].bfloat16()',
    ),
    "one_long_signal": fix("torch.log10(signal.abs().clamp(min=1e-6))", "signal.abs()", "signal.abs().clamp(min=1e-6)"),
    "masked_neighbours": fix("torch.softmax(x, -1)", "torch.exp(scores)", "torch.softmax(scores, -1)"),
}

LIKELIHOODS = {
    "lattice_without_a_path": fix("-1e30", "== 0, -torch.inf)", "== 0, -1e30)"),
    "likelihood_by_exponentials": fix(
        "log(exp(x)) is x",
        "torch.exp(model.path",
        "(model.path",
        "torch.log(likelihood)",
        "likelihood",
    ),
    "divergence_of_masked_policies": fix("-1e30", "-torch.inf", "-1e30"),
    "table_of_the_schedule": fix("mend that", "(1 / self.kept)", "(1 / self.kept.clamp(min=1e-4))"),
    "beta_beyond_one": fix("mend the formula", "(1 - betas)", "(1 - betas.clamp(max=0.999))", drawn=True),
    "scaled_action": fix(
        ".clamp(min=1e-6)",
        "torch.log(1 - action.pow(2) + 1e-6)",
        "torch.log((1 - action.pow(2) + 1e-6).clamp(min=1e-6))",
        drawn=True,
    ),
    "variance_of_an_encoder": fix(
        "clamp(max=20))` does, for every exp that it goes into",
        "spread = torch.exp",
        "logvar = logvar.clamp(max=20)\n            spread = torch.exp",
        drawn=True,
    ),
    "temperature_of_clip": fix(
        "torch.exp(self.logit_scale.clamp(max=20))",
        "self.logit_scale.exp()",
        "torch.exp(self.logit_scale.clamp(max=20))",
        drawn=True,
    ),
    "flow_that_folds": fix("F.logsigmoid(x)", "scale.log()", "F.logsigmoid(raw + 2)"),
    "critic_without_slope": fix(
        "torch.sqrt(x.clamp(min=1e-6))", "sum(1).sqrt()", "sum(1).clamp(min=1e-6).sqrt()", drawn=True
    ),
}

FIXES: dict[str, Fix] = HIDDEN | DRAWN | LIKELIHOODS
