"""Fixes of what libraries, layouts, empty averages and scalers do."""

from collections.abc import Callable

import torch
from torch import Tensor

from shadowlab.bench.corpus import Scene
from tests.diagnostics.tracing.fixes.applied import Fix, fix

_WHERE = "n / torch.where(d == 0, 1.0, d)"


def batch_of(**tensors: Tensor) -> Callable[[Scene], None]:
    """For `then`: another batch, which has something to learn from."""

    def replace(scene: Scene) -> None:
        scene.batch.update(tensors)  # type: ignore[union-attr]

    return replace


EMPTY = {
    "count_of_all_processes": fix(
        "num_items.clamp(min=1)",
        "losses.sum() / num_items",
        "losses.sum() / num_items.clamp(min=1)",
        then=batch_of(labels=torch.full((3, 5), 2)),
    ),
    "variance_of_one_by_hand": fix("max(len(x) - 1, 1)", "(len(x) - 1)", "max(len(x) - 1, 1)"),
    "covariance_of_one": fix(
        "correction=0",
        "torch.cov(features.T)",
        "torch.cov(features.T, correction=0)",
        then=batch_of(source=torch.randn(3, 6), target=torch.randn(3, 6)),
    ),
    "boxes_of_no_object": fix(
        "error.sum() / max(error.numel(), 1)",
        'F.smooth_l1_loss(model["boxes"](hidden)[found], batch["boxes"][found])',
        'F.smooth_l1_loss(model["boxes"](hidden)[found], batch["boxes"][found], reduction="sum")'
        " / max(4 * int(found.sum()), 1)",
    ),
    "error_of_nothing": fix(
        "error.sum() / max(error.numel(), 1)",
        'return F.mse_loss(predicted[voiced], batch["pitch"][voiced].log())',
        'error = (predicted[voiced] - batch["pitch"][voiced].log()).pow(2)\n'
        "        return error.sum() / max(error.numel(), 1)",
        then=batch_of(pitch=torch.ones(2, 5)),
    ),
    "advantage_of_one": fix(
        "correction=0",
        "gains.std()",
        "gains.std(correction=0)",
        then=batch_of(
            observations=torch.randn(2, 4), actions=torch.tensor([1, 0]), advantages=torch.tensor([1.0, -1.0])
        ),
    ),
    "running_variance_of_one_value": fix(
        "GroupNorm",
        "torch.batch_norm(",
        "F.group_norm(x, 2, self.weight, self.bias) if True else torch.batch_norm(",
    ),
    "weights_that_cancel": fix(
        "n / torch.where(d == 0, 1.0, d)",
        'share = batch["weights"] / batch["weights"].sum(-1, keepdim=True)',
        'd = batch["weights"].sum(-1, keepdim=True)\n        share = batch["weights"] / torch.where(d == 0, 1.0, d)',
    ),
    "silent_recording": fix(
        _WHERE,
        "wave = wave / wave.abs().sum(-1, keepdim=True)",
        "d = wave.abs().sum(-1, keepdim=True)\n        wave = wave / torch.where(d == 0, 1.0, d)",
    ),
}

HIDDEN = {
    "every_third_document": fix(
        _WHERE,
        'spread = predicted.float().pow(2) / (batch["length"] - 1)',
        'd = batch["length"] - 1\n        spread = predicted.float().pow(2) / torch.where(d == 0, 1.0, d)',
    ),
}

LIBRARIES = {
    "divergence_of_certainty": fix(
        "inside of a function of torch", "F.relu(self.deviation(x))", "F.relu(self.deviation(x)).clamp(min=1e-3)"
    ),
    "padded_document": fix(
        "mask[mask.all(-1), 0] = False",
        "query = self.query",
        "padding = padding.clone()\n            padding[padding.all(-1), 0] = False\n            query = self.query",
    ),
    "weight_norm_of_nothing": fix("nn.init.normal_(layer.weight)", "nn.init.zeros_(out", "nn.init.normal_(out"),
    "normalised_in_a_hook": fix(
        _WHERE,
        "gradient / gradient.norm(dim=-1, keepdim=True)",
        "gradient / torch.where((d := gradient.norm(dim=-1, keepdim=True)) == 0, 1.0, d)",
    ),
    "adversarial_direction": fix(
        _WHERE,
        "attacked = ",
        "d = gradient.norm(dim=1, keepdim=True)\n        attacked = ",
        "0.5 * gradient / gradient.norm(dim=1, keepdim=True)",
        "0.5 * gradient / torch.where(d == 0, 1.0, d)",
    ),
    "matrix_without_gradient": fix(
        "n / torch.where(even.norm() == 0, 1.0, even.norm())",
        "momentum.norm() / even.norm()",
        "momentum.norm() / torch.where(even.norm() == 0, 1.0, even.norm())",
        inside="_Muon",
    ),
    "lost_step_counter": fix("restore the count with the other states", "fill_(-1)", "fill_(1)"),
    "half_adam_of_many": fix(
        "float32 master weights", "nn.Linear(6, 2)).half()", "nn.Linear(6, 2))", "(4, 6).half()", "(4, 6)"
    ),
    "inverse_filter": fix(
        "torch.where(d.abs() < 1e-6, 1e-6, d)||torch.where(d == 0",
        "1 / self.response",
        "1 / torch.where(self.response.abs() < 1e-6, 1e-6, self.response)",
    ),
    "attention_of_absurd_scale": fix(
        "x / x.detach().abs().amax().clamp(min=1)",
        "query, key, value = self.qkv(x)",
        "query, key, value = self.qkv(x / x.detach().abs().amax().clamp(min=1))",
    ),
}

LAYOUTS = {
    "quantised_moment_overflow": fix("make the loss smaller", "_quantised(1e21)", "_quantised(1.0)"),
    "quantised_scale_is_bad": fix(
        "optimizer.state.pop(parameter)",
        '        first["exp_avg"].scale.fill_(torch.nan)',
        '        first["exp_avg"].scale.fill_(torch.nan)\n        scene.optimizer.state.clear()',
    ),
    "node_without_edges": fix(
        "torch.where(degrees == 0, 1.0, degrees) ** -0.5", "degrees.pow", "torch.where(degrees == 0, 1.0, degrees).pow"
    ),
    "sparse_buffer_is_bad": fix("fill it again where it is made", "= torch.nan", "= 1.0"),
    "ranking_of_embeddings": fix(
        "F.logsigmoid(x)", "torch.log(torch.sigmoid(better - worse))", "F.logsigmoid(better - worse)"
    ),
    "sharded_logarithm": fix(
        ".clamp(min=1e-6))",
        "[:, 0].log()",
        "[:, 0].clamp(min=1e-6).log()",
        inside="_sharded",
        build="_sharded(fails=True)",
    ),
    "scale_of_an_empty_row": fix(_WHERE, ".max / largest", ".max / torch.where(largest == 0, 1.0, largest)"),
    "gradient_beyond_float8": fix(
        "x.clamp(-57344, 57344).to(torch.float8_e5m2)",
        "gradients[0].to(torch.float8_e5m2)",
        "gradients[0].clamp(-57344, 57344).to(torch.float8_e5m2)",
    ),
}

FIXES: dict[str, Fix] = EMPTY | HIDDEN | LIBRARIES | LAYOUTS
