"""Fixes of what backward, the scaler, the optimizer and averages do."""

from typing import Any

import torch
from torch import nn

from shadowlab.bench.corpus import Scene
from tests.diagnostics.tracing.fixes.applied import Fix, fix

_WIDER = "float32 or bfloat16"
_WHERE = "n / torch.where(d == 0, 1.0, d)"
_ROOT = "torch.sqrt(x.clamp(min=1e-6))"
_LIMIT = "torch.nn.utils.clip_grad_value_(parameters, 1.0)"
_LIMITED = "nn.utils.clip_grad_value_(model.parameters(), 1.0)"


def other_batch(key: str) -> Any:
    """For `then`: the batch's tensor has something to learn from."""

    def fill(scene: Scene) -> None:
        assert scene.batch is not None
        scene.batch[key].copy_(torch.rand_like(scene.batch[key]) + 0.5)

    return fill


def start_elsewhere(scene: Scene) -> None:
    """For `then`: off a point at which every direction is equal."""
    assert isinstance(scene.model, nn.Linear)
    nn.init.normal_(scene.model.weight)


BACKWARD = {
    "untaken_exponential": fix("torch.exp(x.clamp(max=20))", "torch.exp(x) - 1", "torch.exp(x.clamp(max=20)) - 1"),
    "untaken_square_root": fix(_ROOT, "torch.sqrt(energy)", "torch.sqrt(energy.clamp(min=1e-6))"),
    "untaken_logarithm": fix(
        "F.log_softmax(logits, -1)",
        "nn.Softmax(dim=-1)",
        "nn.LogSoftmax(dim=-1)",
        "logarithm = torch.log(p)",
        "logarithm, p = p, p.exp()",
    ),
    "distance_of_equal_points": fix(_ROOT, "torch.sqrt(squared)", "torch.sqrt(squared.clamp(min=1e-6))"),
    "gamma_curve_at_black": fix("x.clamp(min=1e-6) ** exponent", "return x **", "return x.clamp(min=1e-6) **"),
    "angle_of_equal_vectors": fix(
        "torch.acos(x.clamp(-1 + 1e-6, 1 - 1e-6))",
        "torch.acos(cosine)",
        "torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))",
    ),
    "gradient_penalty_at_zero": fix(_ROOT, "sum(1).sqrt()", "sum(1).clamp(min=1e-6).sqrt()", then=start_elsewhere),
    "repeated_singular_values": fix(
        "A + 1e-3 * torch.randn_like(A)",
        "torch.linalg.svd(model.weight)",
        "torch.linalg.svd(model.weight + 1e-3 * torch.randn_like(model.weight))",
        drawn=True,
    ),
}

GRADIENTS = {
    "faulty_function_kernel": fix("by torch's own operators", "FusedTanh.apply(x)", "x.tanh()"),
    "faulty_library_kernel": fix("by torch's own operators", "fused_scale(x)", "x * 1.0"),
    "function_divides_by_zero": fix(_WHERE, "(x / length)", "(x / torch.where(length == 0, 1.0, length))"),
    "gradient_cast_overflow": fix(
        _WIDER, "nn.Linear(8, 4).half()", "nn.Linear(8, 4).bfloat16()", "(5, 8).half()", "(5, 8).bfloat16()"
    ),
    "weight_gradient_overflow": fix(
        _WIDER, "Projection()).half()", "Projection()).bfloat16()", "2e4).half()", "2e4).bfloat16()"
    ),
    "inverse_root_gradient_overflow": fix(
        _WIDER, "Whiten().half()", "Whiten().bfloat16()", "(5, 8).half()", "(5, 8).bfloat16()"
    ),
    "quotient_gradient_overflow": fix(".clamp(min=1e-6)", '(batch["x"]).exp())', '(batch["x"]).exp().clamp(min=1e-6))'),
    "gradient_hook": fix(
        "`, in the hook",
        "lambda gradient: gradient / gradient.abs().amax()",
        "lambda gradient: gradient / torch.where(gradient.abs().amax() == 0, 1.0, gradient.abs().amax())",
        then=other_batch("weight"),
    ),
}

SCALING = {
    "collapsed_scale": fix("a new `torch.amp.GradScaler()`", '"cpu", init_scale=1.4e-45', '"cpu"'),
    "zero_scale": fix("a new `torch.amp.GradScaler()`", '"cpu", init_scale=0.0', '"cpu"'),
    "unscale_overflow": fix("divide the loss by a constant", "1e30 * model", "model"),
    "skips_hide_forward_nan": fix(
        "torch.log(x.float().clamp(min=1e-6))",
        "torch.log(x.float())",
        "torch.log(x.float().clamp(min=1e-6))",
        steps=12,
    ),
    "skips_hide_backward_nan": fix(_ROOT, "torch.sqrt(energy)", "torch.sqrt(energy.clamp(min=1e-6))"),
    "constant_scale_overflow": fix(
        _WIDER, "nn.Linear(8, 4).half()", "nn.Linear(8, 4).bfloat16()", "(5, 8).half()", "(5, 8).bfloat16()"
    ),
    "clip_norm_overflow": fix(_LIMIT, "nn.utils.clip_grad_norm_(", f"{_LIMITED}\n        nn.utils.clip_grad_norm_("),
    "clip_norm_overflow_float16": fix(_LIMIT, "norm = nn.utils", f"{_LIMITED}\n        norm = nn.utils"),
    "clip_norm_of_norms_overflow": fix(
        _LIMIT, "nn.utils.clip_grad_norm_(", f"{_LIMITED}\n        nn.utils.clip_grad_norm_("
    ),
    "clip_by_hand_of_zero": fix(
        "torch.nn.utils.clip_grad_norm_",
        "norm = torch.stack([gradient_of(parameter).norm() for parameter in model.parameters()]).norm()",
        "nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n        norm = torch.tensor(1.0)",
        then=other_batch("weight"),
    ),
    "clip_spreads_infinity": fix(
        "make the loss smaller",
        'model(batch["x"])',
        'model(batch["x"] / batch["x"].detach().abs().amax().clamp(min=1))',
        "1e19 * output.sum()",
        "output.sum()",
    ),
}

OPTIMIZER = {
    "epsilon_underflow_single": fix(
        "float32 master weights", "_two_layers().half()", "_two_layers()", "(5, 8).half()", "(5, 8)"
    ),
    "epsilon_underflow_foreach": fix(
        "float32 master weights", "_two_layers().half()", "_two_layers()", "(5, 8).half()", "(5, 8)"
    ),
    "epsilon_underflow_seen_later": fix(
        "float32 master weights", "_two_layers().half()", "_two_layers()", "(5, 8).half()", "(5, 8)"
    ),
    "infinite_learning_rate": fix("learning rate", "lr=torch.inf", "lr=0.1"),
    "undefined_learning_rate": fix("learning rate and its schedule", "float(torch.tensor(0.0) / 0.0)", "0.5"),
    "update_overflow_float16": fix(
        "lower the learning rate",
        "nn.Linear(8, 4)).half()",
        "nn.Linear(8, 4))",
        "10.0).half()",
        "10.0)",
        "lr=1e4",
        "lr=1e-2",
    ),
    "second_moment_overflow_foreach": fix(
        "make the loss smaller", "1e23 * model", "model", inside="_second_moment_overflow"
    ),
    "second_moment_overflow_fused": fix(
        _LIMIT,
        "    return Scene",
        f"    optimizer.register_step_pre_hook(lambda *_: {_LIMITED} and None)\n    return Scene",
        inside="_second_moment_overflow",
    ),
    "centred_variance_below_zero": fix("centered=False", "centered=True", "centered=False"),
    "adagrad_without_epsilon": fix("eps=1e-8", "eps=0.0", "eps=1e-8"),
    "negative_second_moment": fix(
        "optimizer.state.pop(parameter)",
        '["exp_avg_sq"][2] = -1.0',
        '["exp_avg_sq"][2] = -1.0\n    optimizer.state.pop(model.bias)',
    ),
    "faulty_update_kernel": fix(
        "by torch's own operators",
        "blockwise_update(parameter, parameter.grad, moment)",
        "parameter.sub_(moment.lerp_(parameter.grad, 0.1), alpha=1e-3)",
    ),
    "step_size_estimate": fix(
        "n / torch.where(length == 0, 1.0, length)",
        "torch.div(growth, length)",
        "growth / torch.where(length == 0, 1.0, length)",
        then=other_batch("x"),
    ),
    "normalised_descent": fix(
        "n / torch.where(gradient.norm() == 0, 1.0, gradient.norm())",
        "gradient / gradient.norm()",
        "gradient / torch.where(gradient.norm() == 0, 1.0, gradient.norm())",
    ),
    "skipped_by_multiplication": fix(_WIDER, "model.half()", "model.bfloat16()", "2e4).half()", "2e4).bfloat16()"),
}

AVERAGING = {
    "bias_correction_at_step_zero": fix("count this step before the division", "pow(0)", "pow(1)"),
    "cast_in_place": fix("cast a copy", "average.half()", "copy.deepcopy(average).half()"),
    "running_sum_overflow": fix(
        "average in float32", "copy.deepcopy(model).requires", "copy.deepcopy(model).float().requires"
    ),
    "undefined_decay": fix("between 0 and 1", "math.inf * 0.0", "0.999"),
    "buffer_average_divides_by_zero": fix(
        "count this step before the division",
        "self.mean.add_(torch.div",
        "self.count.add_(1)\n            self.mean.add_(torch.div",
        "# origin\n            self.count.add_(1)",
        "",
    ),
    "average_of_poisoned_weights": fix(
        "float32 master weights", "bias=False).half()", "bias=False)", "(5, 8).half()", "(5, 8)"
    ),
}

FIXES: dict[str, Fix] = BACKWARD | GRADIENTS | SCALING | OPTIMIZER | AVERAGING
