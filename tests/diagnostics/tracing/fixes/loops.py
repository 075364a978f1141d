"""Fixes of loops: accumulation, generators, updates outside of the step, steps that raise."""

from tests.diagnostics.tracing.fixes.applied import Fix, fix

_WIDER = "float32 or bfloat16"
_WHERE = "n / torch.where(d == 0, 1.0, d)"

ACCUMULATION = {
    "third_of_four_micro_batches": fix(
        "n / torch.where(kept.sum(1) == 0, 1.0, kept.sum(1))",
        "/ kept.sum(1)",
        "/ torch.where(kept.sum(1) == 0, 1.0, kept.sum(1))",
    ),
    "accumulated_sum_overflow": fix(
        _WIDER, "bias=False).half()", "bias=False).bfloat16()", 'batch["x"].half()', 'batch["x"].bfloat16()'
    ),
    "update_at_the_boundary": fix(
        "float32 master weights", "nn.Linear(6, 4)).half()", "nn.Linear(6, 4))", 'batch["x"].half()', 'batch["x"]'
    ),
    "second_micro_batch_of_accelerate": fix(
        "n / torch.where(snr == 0, 1.0, snr)",
        ".min(1)[0] / snr",
        ".min(1)[0] / torch.where(snr == 0, 1.0, snr)",
        drawn=True,
    ),
    "accelerate_updates_at_its_boundary": fix(
        "float32 master weights", "nn.Linear(8, 8).half()", "nn.Linear(8, 8)", '["latents"].half()', '["latents"]'
    ),
    "optimizer_of_a_manual_loop": fix(
        "n / torch.where(batch['sigma'] == 0, 1.0, batch['sigma'])",
        '/ batch["sigma"])',
        '/ torch.where(batch["sigma"] == 0, 1.0, batch["sigma"]))',
        inside="_lightning_step",
        build="_lightning_step(fails=True)",
        drawn=True,
    ),
}

GENERATORS = {
    "timesteps_of_a_generator": fix(
        "n / torch.where(alpha.sqrt() == 0, 1.0, alpha.sqrt())",
        "/ alpha.sqrt()",
        "/ torch.where(alpha.sqrt() == 0, 1.0, alpha.sqrt())",
        drawn=True,
    ),
    "mask_of_a_generator": fix(
        "masked.sum().clamp(min=1)", "/ masked.sum()", "/ masked.sum().clamp(min=1)", drawn=True
    ),
    "words_of_a_generator": fix(
        "(target != -100).sum().clamp(min=1)",
        "F.cross_entropy(model(words).flatten(0, 1), labels.flatten())",
        'F.cross_entropy(model(words).flatten(0, 1), labels.flatten(), reduction="sum")'
        " / (labels != -100).sum().clamp(min=1)",
        drawn=True,
    ),
    "share_of_a_given_generator": fix(
        "torch.log(share.clamp(min=1e-6))", "share.log()", "torch.log(share.clamp(min=1e-6))", drawn=True
    ),
}

OUTSIDE = {
    "trainer_updates_half_weights": fix("keep float32 weights", "nn.Linear(8, 9)).half()", "nn.Linear(8, 9))"),
    "trainer_updates_with_spoilt_moment": fix(
        "optimizer.state.pop(parameter)",
        "        optimizer.zero_grad()",
        "        optimizer.zero_grad()\n"
        "        if any(state['exp_avg_sq'].isinf().any() for state in optimizer.state.values()):\n"
        "            optimizer.state.clear()",
    ),
    "rate_outside_is_undefined": fix("mend its schedule", "0.1 * float(torch.tensor(0.0) / warm_up)", "0.1"),
    "forced_weight_norm": fix(
        _WHERE,
        "weight.copy_(weight / weight.norm(dim=1, keepdim=True))",
        "d = weight.norm(dim=1, keepdim=True)\n                weight.copy_(weight / torch.where(d == 0, 1.0, d))",
        drawn=True,
    ),
    "pruned_by_a_quantile": fix(
        "n / torch.where(share == 0, 1.0, share)", "keep / share", "keep / torch.where(share == 0, 1.0, share)"
    ),
    "average_is_swapped_in": fix("average in float32", "kept.half()", "kept"),
    "projected_gradient": fix(
        "n / torch.where(second.norm() ** 2 == 0, 1.0, second.norm() ** 2)",
        "/ second.norm() ** 2",
        "/ torch.where(second.norm() ** 2 == 0, 1.0, second.norm() ** 2)",
    ),
}

RAISING = {
    "policy_of_unseen_observations": fix(
        "torch.where(self.variance.sqrt() == 0, 1.0, self.variance.sqrt())",
        "/ self.variance.sqrt()",
        "/ torch.where(self.variance.sqrt() == 0, 1.0, self.variance.sqrt())",
    ),
    "scheduled_sampling": fix(
        "torch.softmax(x, -1)",
        "keepdim=True)).exp()",
        "keepdim=True))",
        "odds / odds.sum(-1, keepdim=True)",
        "torch.softmax(odds, -1)",
        drawn=True,
    ),
    "gaussian_process": fix(
        "torch.log(batch['y'].clamp(min=1e-6))", 'batch["y"].log()', 'torch.log(batch["y"].clamp(min=1e-6))'
    ),
    "counted_in_whole_numbers": fix(
        "n / torch.where(batch['depth'] == 0, 1.0, batch['depth'])",
        '/ batch["depth"]',
        '/ torch.where(batch["depth"] == 0, 1.0, batch["depth"])',
    ),
    "matching_of_boxes": fix(
        _WHERE,
        "return shared / (area[0] + area[1] - shared)",
        "d = area[0] + area[1] - shared\n        return shared / torch.where(d == 0, 1.0, d)",
    ),
    "training_stops_itself": fix(
        _WIDER, "_Detector().half()", "_Detector().bfloat16()", '["images"].half()', '["images"].bfloat16()'
    ),
    "boxes_are_asserted": fix(
        _WHERE,
        "return sides / sides.amax(-1, keepdim=True)",
        "d = sides.amax(-1, keepdim=True)\n            return sides / torch.where(d == 0, 1.0, d)",
    ),
    "clipping_that_refuses": fix("torch.sqrt(x.clamp(min=1e-6))", "apart.sqrt()", "torch.sqrt(apart.clamp(min=1e-6))"),
    "the_loop_raises": fix("torch.log(rate.clamp(min=1e-6))", "rate.log()", "torch.log(rate.clamp(min=1e-6))"),
}

FIXES: dict[str, Fix] = ACCUMULATION | GENERATORS | OUTSIDE | RAISING
