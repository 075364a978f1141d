"""Fixes of what a step is given: states and batches."""

from tests.diagnostics.tracing.fixes.applied import Fix, fix

_FINITE = "torch.where(torch.isfinite(x), x, 0.0)"


def finite(code: str) -> str:
    """`code`, or the batch's tensor of that name, with its bad entries left out."""
    code = code if code == "latents" else f'batch["{code}"]'
    return f"torch.where(torch.isfinite({code}), {code}, 0.0)"


STATE = {
    "unwritten_weight": fix(
        "initialise it",
        'model.get_parameter("2.weight").data[1, 3] = torch.nan',
        'nn.init.xavier_uniform_(model.get_parameter("2.weight"))',
    ),
    "infinite_bias": fix(
        "restore the last good checkpoint",
        "    model.get_parameter",
        "    good = {key: value.clone() for key, value in model.state_dict().items()}\n    model.get_parameter",
        '    batch = {"x"',
        '    model.load_state_dict(good)\n    batch = {"x"',
    ),
    "garbage_buffer": fix(
        "fill it again where it is made",
        "torch.full((4,), torch.nan), persistent=False)",
        "torch.full((4,), torch.nan), persistent=False)\n            self.frequencies.copy_(100 ** -torch.rand(4))",
    ),
    "poisoned_first_moment": fix(
        "optimizer.state.pop(parameter)",
        '["exp_avg"][2, 1] = torch.nan',
        '["exp_avg"][2, 1] = torch.nan\n    optimizer.state.pop(model.weight)',
    ),
    "infinite_momentum": fix(
        "optimizer.state.pop(parameter)",
        '["momentum_buffer"][0] = torch.inf',
        '["momentum_buffer"][0] = torch.inf\n    optimizer.state.pop(model.get_parameter("2.bias"))',
    ),
    "infinite_second_moment": fix(
        "optimizer.state.pop(parameter)",
        '["exp_avg_sq"][0, 0] = torch.inf',
        '["exp_avg_sq"][0, 0] = torch.inf\n    optimizer.state.pop(model.weight)',
    ),
    "tied_embedding": fix(
        "initialise it",
        "model.embed.weight.data[6, 0] = torch.nan",
        "model.embed.weight.data[6, 0] = torch.nan\n    nn.init.normal_(model.embed.weight)",
    ),
    "leftover_gradient": fix(
        "optimizer.zero_grad()",
        'lambda: model(batch["x"])',
        'lambda: model.zero_grad() or model(batch["x"])',
    ),
    "frozen_encoder_weight": fix(
        "load it again",
        '[0, 0] = torch.inf\n    batch = {"x": torch.rand(5, 8) + 0.1}',
        '[0, 0] = torch.inf\n    batch = {"x": torch.rand(5, 8) + 0.1}\n'
        '    nn.init.xavier_uniform_(encoder.get_parameter("0.weight"))',
    ),
    "running_variance_in_evaluation": fix(
        "reset_running_stats()",
        '("1.running_var")[3] = torch.nan',
        '("1.running_var")[3] = torch.nan\n    model[1].reset_running_stats()',
    ),
}

DATA = {
    "nan_pixel": fix(_FINITE, 'model(batch["images"])', f"model({finite('images')})"),
    "nan_cached_latent": fix(_FINITE, "model(latents + noise)", f"model({finite('latents')} + noise)"),
    "nan_in_masked_padding": fix(
        _FINITE, 'model(batch["queries"], batch["context"],', f'model(batch["queries"], {finite("context")},'
    ),
    "inf_in_stale_float16_cache": fix("again in bfloat16 or float32", "prompt.half()", "prompt.bfloat16()"),
    "vae_overflow_float16": fix(
        "float32 or bfloat16",
        "bias=False).half()",
        "bias=False).bfloat16()",
        'batch["images"].half()',
        'batch["images"].bfloat16()',
    ),
    "logit_of_time_zero": fix(
        "torch.logit(batch['t'], eps=1e-6)", 'torch.logit(batch["t"])', 'torch.logit(batch["t"], eps=1e-6)'
    ),
    "constant_image_standardised": fix(
        "n / torch.where(d == 0, 1.0, d)",
        "scaled = centred / images.std((1, 2, 3), keepdim=True)",
        "d = images.std((1, 2, 3), keepdim=True)\n        scaled = centred / torch.where(d == 0, 1.0, d)",
    ),
    "zero_size_crop": fix(
        "n / torch.where(batch['crop'] == 0, 1.0, batch['crop'])",
        'zoom = batch["size"] / batch["crop"]',
        'd = batch["crop"]\n        zoom = batch["size"] / torch.where(d == 0, 1.0, d)',
    ),
    "zero_sigma_input_scaling": fix(
        "divide by 1 where the denominator is 0",
        'scaled = batch["noisy"] / batch["sigma"][:, None]',
        'd = batch["sigma"][:, None]\n        scaled = batch["noisy"] / torch.where(d == 0, 1.0, d)',
    ),
    "nan_target": fix(_FINITE, 'batch["target"])', f"{finite('target')})"),
    "infinite_depth_of_sky": fix(_FINITE, 'batch["depth"])', f"{finite('depth')})"),
}

FIXES: dict[str, Fix] = STATE | DATA
