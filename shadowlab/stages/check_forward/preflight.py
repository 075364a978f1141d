"""What is known to make a run non-finite, looked for before its first step."""

import math

import torch

from diagnostics.watching import eps_finding, known_kernel_fault
from shadowlab.checks import Check
from shadowlab.settings import Config
from shadowlab.training import Trainee, learning_rate

_SCHEDULE_SAMPLES = 1000


def preflight(trainee: Trainee, config: Config) -> list[Check]:
    """One check for each known cause. What `allow_unsafe` permits is reported, but fails nothing."""
    return [
        _eps_survives(trainee, config.allow_unsafe),
        _scaler_has_float32(trainee),
        _schedule_is_sound(trainee),
        _kernels_are_sound(trainee),
    ]


def _eps_survives(trainee: Trainee, allowed: bool) -> Check:
    """AdamW divides by sqrt(v) + eps: pytorch#8860, pytorch#147437."""
    finding = eps_finding(trainee.optimizer)
    eps = trainee.optimizer.param_groups[0]["eps"]
    dtype = str(next(trainee.unet.parameters()).dtype).removeprefix("torch.")
    return Check(
        "the optimizer's eps is not zero",
        finding is None,
        "eps > 0 after rounding to the parameters' dtype",
        finding or f"eps {eps:g} in {dtype}",
        f"the first optimizer.step() will divide by zero: {_eps_fix(eps)}",
        tolerated=allowed,
    )


def _eps_fix(eps: float) -> str:
    """Another precision helps where float32 can hold it."""
    if float(torch.tensor(eps, dtype=torch.float32)) == 0.0:
        return "use --set optimizer.eps=1e-8: this one is 0 in float32, too"
    return "use --precision fp16 or bf16 (float32 master weights) or fp32"


def _scaler_has_float32(trainee: Trainee) -> Check:
    """GradScaler refuses float16 gradients: diffusers#6442."""
    half = [name for name, parameter in trainee.parameters().items() if parameter.dtype is torch.float16]
    wrong = half if trainee.scaler is not None else []
    return Check(
        "no float16 parameter under a gradient scaler",
        not wrong,
        "0 tensors",
        f"{len(wrong)} tensors" + (f", first {wrong[0]}" if wrong else ""),
        "keep trainable parameters in float32 and use autocast",
    )


def _schedule_is_sound(trainee: Trainee) -> Check:
    config, last = trainee.learning_rate_config, trainee.max_steps - 1
    steps = sorted({round(last * i / _SCHEDULE_SAMPLES) for i in range(_SCHEDULE_SAMPLES + 1)} | {0})
    rates = {step: learning_rate(config, step, trainee.max_steps) for step in steps}
    wrong = [step for step, rate in rates.items() if not math.isfinite(rate) or rate < 0]
    still = rates[0] == 0  # 0 * inf is NaN where the first update is infinite; and nothing is learnt
    return Check(
        "learning rates are finite and the first is not zero",
        not wrong and not still,
        "finite, >= 0, > 0 at step 1",
        f"step {wrong[0] + 1}: {rates[wrong[0]]}"
        if wrong
        else f"{rates[0]:.3g} at step 1, {rates[last]:.3g} at the last",
        "see optimizer.learning_rate, schedule and warmup_steps",
    )


def _kernels_are_sound(trainee: Trainee) -> Check:
    fault = known_kernel_fault(trainee.device)
    return Check(
        "no kernel that is known to return NaN",
        fault is None,
        "none of the known ones is enabled on this device",
        fault or f"none on {trainee.device.type}, torch {torch.__version__}",
        "torch.backends.cuda.enable_cudnn_sdp(False) before training, or a release in which it is mended",
    )
