"""Fixes of what the model's call, the loss and their forms do."""

from tests.diagnostics.tracing.fixes.applied import Fix, fix

_WIDER = "float32 or bfloat16"
_WHERE = "n / torch.where(d == 0, 1.0, d)"
_LEFT_OUT = "n / torch.where(d == 0, 1.0, d)"
_DOWN = "x / x.detach().abs().amax().clamp(min=1)"
_BOUND = "torch.exp(x.clamp(max=20))"

ATTENTION = {
    "query_key_overflow": fix(
        _WIDER, "Block().half()", "Block().bfloat16()", 'batch["x"].half()', 'batch["x"].bfloat16()'
    ),
    "residual_overflow": fix(
        _WIDER, "Residual()).half()", "Residual()).bfloat16()", 'batch["x"].half()', 'batch["x"].bfloat16()'
    ),
    "feed_forward_overflow_autocast": fix(_WIDER, "dtype=torch.float16", "dtype=torch.bfloat16"),
    "masked_row": fix("scores.masked_fill(mask, -1e30)", "[:, None], -torch.inf)", "[:, None], -1e30)"),
    "softmax_by_hand": fix(
        "torch.softmax(x, -1)",
        "odds = torch.exp(x)",
        "return torch.softmax(x, -1)\n            odds = torch.exp(x)",
    ),
    "rms_norm_epsilon_underflow": fix(
        "in float32 (`x.float()`)",
        "return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-8)",
        "wide = x.float()\n"
        "            return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-8)).to(x.dtype)",
    ),
    "normalise_epsilon_underflow": fix("1e-3 in the place of the epsilon", "length + 1e-8", "length + 1e-3"),
    "cast_overflow": fix(
        "use bfloat16", "nn.Linear(8, 4).half()", "nn.Linear(8, 4).bfloat16()", "torch.float16", "torch.bfloat16"
    ),
    "power_overflow_bfloat16": fix(_DOWN, "torch.pow(x, 8)", f"torch.pow({_DOWN}, 8)"),
    "softplus_by_hand_bfloat16": fix("F.softplus(x)", "torch.log(1 + torch.exp(x))", "F.softplus(x)"),
    "saturated_probability_bfloat16": fix("F.logsigmoid(-x)", "torch.log(1 - probability)", "F.logsigmoid(-x)"),
}

FORWARD = {
    "faulty_kernel": fix(
        "by torch's own operators",
        "return leaky_gather(x, torch.tensor([0, 1, -1, 3, 4]))",
        "index = torch.tensor([0, 1, -1, 3, 4])\n"
        "            return torch.where((index < 0)[:, None], 0.0, x[index.clamp(min=0)])",
    ),
    "cancelled_variance": fix(
        "torch.sqrt(variance.clamp(min=1e-6))", "torch.sqrt(variance)", "torch.sqrt(variance.clamp(min=1e-6))"
    ),
    "cosine_of_zero_vector": fix(
        _WHERE,
        "return x / x.norm(dim=-1, keepdim=True)",
        "d = x.norm(dim=-1, keepdim=True)\n            return x / torch.where(d == 0, 1.0, d)",
    ),
    "deviation_of_one_sample": fix("correction=0", "torch.std(x, dim=0)", "torch.std(x, dim=0, correction=0)"),
    "empty_mask_pooling": fix(
        "d.clamp(min=1)", "valid.sum(1, keepdim=True)", "valid.sum(1, keepdim=True).clamp(min=1)"
    ),
    "empty_node_mean": fix(
        "n / torch.where(count[:, None] == 0, 1.0, count[:, None])",
        "total / count[:, None]",
        "total / torch.where(count[:, None] == 0, 1.0, count[:, None])",
    ),
    "log_of_dead_unit": fix("torch.log(x.relu().clamp(min=1e-6))", "x.relu()", "x.relu().clamp(min=1e-6)"),
    "posterior_deviation_overflow": fix(
        "torch.exp((0.5 * log_variance).clamp(max=20))",
        "torch.exp(0.5 * log_variance)",
        "torch.exp((0.5 * log_variance).clamp(max=20))",
    ),
    "closed_gate": fix(_BOUND, "torch.exp(x)", _BOUND),
    "unwritten_memory": fix("torch.zeros", "torch.empty(len(x)", "torch.zeros(len(x)"),
    "running_variance_overflow": fix(
        _DOWN,
        'output = model(batch["x"])',
        f'x = batch["x"]\n        output = model({_DOWN})',
    ),
    "written_by_numpy": fix("inside its domain", "x.detach().numpy()", "x.detach().clamp(min=0).numpy()"),
}

LOSS = {
    "all_targets_ignored": fix(
        "(target != -100).sum().clamp(min=1)",
        'F.cross_entropy(logits, batch["labels"])',
        'F.cross_entropy(logits, batch["labels"], reduction="sum") / (batch["labels"] != -100).sum().clamp(min=1)',
        then=lambda scene: scene.batch["labels"].fill_(2),  # type: ignore[index]
    ),
    "empty_loss_mask": fix(
        "n / torch.where(batch['mask'].sum() == 0, 1.0, batch['mask'].sum())",
        'error.sum() / batch["mask"].sum()',
        'error.sum() / torch.where(batch["mask"].sum() == 0, 1.0, batch["mask"].sum())',
        then=lambda scene: scene.batch["mask"].fill_(1),  # type: ignore[index]
    ),
    "mean_of_empty_selection": fix(
        "error.sum() / max(error.numel(), 1)",
        'return torch.mean(error[batch["selected"]])',
        'error = error[batch["selected"]]\n        return error.sum() / max(error.numel(), 1)',
        then=lambda scene: scene.batch["selected"].fill_(True),  # type: ignore[index]
    ),
    "min_snr_weight_at_zero_snr": fix(
        "n / torch.where(snr == 0, 1.0, snr)", "max=5) / snr", "max=5) / torch.where(snr == 0, 1.0, snr)"
    ),
    "flow_weight_at_one": fix(
        _LEFT_OUT,
        'weight = 1 / (1 - batch["t"])',
        'd = 1 - batch["t"]\n        weight = 1 / torch.where(d == 0, 1.0, d)',
    ),
    "divergence_overflow": fix(
        "torch.exp(log_variance.clamp(max=20))", "log_variance.exp()", "torch.exp(log_variance.clamp(max=20))"
    ),
    "temperature_underflow": fix(
        "log_temperature.clamp(min=-4.6).exp()",
        "self.log_temperature.exp()",
        "self.log_temperature.clamp(min=-4.6).exp()",
        then=lambda scene: scene.batch["x"].uniform_(0.9, 1),  # type: ignore[index]
    ),
    "cross_entropy_by_hand": fix(
        "F.logsigmoid(x)",
        'probability = model(batch["x"])[:, 0].sigmoid()',
        'x = model(batch["x"])[:, 0]\n        probability = x.sigmoid()',
        "torch.log(probability)",
        "F.logsigmoid(x)",
    ),
    "decibels_of_no_error": fix(
        "torch.log10(error.clamp(min=1e-6))", "torch.log10(error)", "torch.log10(error.clamp(min=1e-6))"
    ),
    "correlation_with_constant": fix(
        _WHERE,
        "return 1 - (covariance / (prediction.norm(dim=-1) * target.norm(dim=-1))).mean()",
        "d = prediction.norm(dim=-1) * target.norm(dim=-1)\n"
        "        return 1 - (covariance / torch.where(d == 0, 1.0, d)).mean()",
    ),
    "determinant_of_reflection": fix(
        "torch.linalg.slogdet(A).logabsdet",
        "torch.logdet(model.weight)",
        "torch.linalg.slogdet(model.weight).logabsdet",
    ),
    "sum_overflow_float16": fix(
        _WIDER,
        "nn.Conv2d(1, 1, 1).half()",
        "nn.Conv2d(1, 1, 1).bfloat16()",
        "torch.zeros(5, 1, 16, 16).half()",
        "torch.zeros(5, 1, 16, 16).bfloat16()",
    ),
    "rotation_angle_beyond_one": fix(
        "torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))",
        "torch.acos(cosine)",
        "torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))",
    ),
    "impossible_alignment": fix(
        "zero_infinity=True", "torch.tensor([2, 3, 2]))", "torch.tensor([2, 3, 2]), zero_infinity=True)"
    ),
}

STRUCTURE = {
    "checkpointed_overflow": fix(_BOUND, "torch.exp(x)", _BOUND),
    "checkpointed_overflow_reentrant": fix(_BOUND, "torch.exp(x)", _BOUND),
    "checkpointed_root_at_zero": fix("torch.sqrt(x.clamp(min=1e-6))", "torch.sqrt(x)", "torch.sqrt(x.clamp(min=1e-6))"),
    "checkpointed_root_at_zero_reentrant": fix(
        "torch.sqrt(x.clamp(min=1e-6))", "torch.sqrt(x)", "torch.sqrt(x.clamp(min=1e-6))"
    ),
    "in_place_division": fix(
        _WHERE,
        "return x.div_(x.amax(-1, keepdim=True).detach())",
        "d = x.amax(-1, keepdim=True).detach()\n            return x.div_(torch.where(d == 0, 1.0, d))",
    ),
    "logarithm_through_view": fix(".clamp(min=1e-6)", "part.abs_().log_()", "part.abs_().clamp_(min=1e-6).log_()"),
    "division_into_buffer": fix(
        "n / torch.where(batch['scale'] == 0, 1.0, batch['scale'])",
        'torch.div(batch["x"], batch["scale"], out=scaled)',
        'd = batch["scale"]\n            torch.div(batch["x"], torch.where(d == 0, 1.0, d), out=scaled)',
    ),
    "accumulated_gradient_overflow": fix(
        _WIDER, "bias=False).half()", "bias=False).bfloat16()", "1.5e4).half()", "1.5e4).bfloat16()"
    ),
    "tied_gradient_overflow": fix(_WIDER, "Tied().half()", "Tied().bfloat16()", "8e3).half()", "8e3).bfloat16()"),
    "saturated_discriminator": fix(
        "F.logsigmoid(-x)",
        "nn.Flatten(0), nn.Sigmoid())",
        "nn.Flatten(0))",
        "torch.log(1 - certainty)",
        "F.logsigmoid(-certainty)",
    ),
    "overflow_in_selected_rows": fix(
        _DOWN,
        "result[chosen] = x[chosen] * x[chosen]",
        f"result, x = result.clone(), {_DOWN}\n            result[chosen] = x[chosen] * x[chosen]",
    ),
    "recurrent_growth": fix(_DOWN, "self.cell(x)", f"self.cell({_DOWN})"),
}

FIXES: dict[str, Fix] = ATTENTION | FORWARD | LOSS | STRUCTURE
