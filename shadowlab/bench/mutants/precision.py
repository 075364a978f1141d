"""Precision that is not what it says."""

from shadowlab.bench.mutants.mutant import Stage, mutant

_FILE = "shadowlab/models/precision.py"
_PREPARE = f"{_FILE} Precision.prepare"
_ADAPTER = "shadowlab/models/adapter.py predict"
_FLOW = "shadowlab/models/flow.py"
_CHECKED: tuple[Stage, ...] = ("check-forward", "train")
_SAYS = ("float16", "bfloat16", "float32", "precision", "autocast")

PRECISION = (
    mutant(
        "bf16-computes-in-float32",
        f"{_FILE} POLICIES",
        'Precision("bf16", torch.float32, torch.bfloat16, False, False)',
        'Precision("bf16", torch.float32, None, False, False)',
        stages=_CHECKED,
        options="--precision bf16",
        also=(f"{_FILE} Precision.autocast", f"{_FILE} Precision"),
        says=_SAYS,
    ),
    mutant(
        "bf16-keeps-half-weights",
        f"{_FILE} POLICIES",
        'Precision("bf16", torch.float32, torch.bfloat16, False, False)',
        'Precision("bf16", torch.bfloat16, None, False, False)',
        stages=_CHECKED,
        options="--precision bf16",
        also=(_PREPARE, f"{_FILE} Precision"),
        says=_SAYS,
    ),
    mutant(
        "fp32-computes-in-bfloat16",
        f"{_FILE} POLICIES",
        'Precision("fp32", torch.float32, None, False, False)',
        'Precision("fp32", torch.float32, torch.bfloat16, False, False)',
        stages=_CHECKED,
        also=(f"{_FILE} Precision.autocast", f"{_FILE} Precision"),
        says=_SAYS,
    ),
    mutant(
        "fp16-without-a-scaler",
        f"{_FILE} POLICIES",
        'Precision("fp16", torch.float32, torch.float16, True, False)',
        'Precision("fp16", torch.float32, torch.float16, False, False)',
        stages=_CHECKED,
        options="--precision fp16",
        also=("shadowlab/training/trainee.py build_trainee",),
        says=("scaler",),
    ),
    mutant(
        "norms-in-bfloat16",
        _PREPARE,
        "if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):",
        "if isinstance(module, nn.GroupNorm) and module.num_groups < 1:",
        stages=_CHECKED,
        options="--precision bf16",
        also=(f"{_FILE} _keep_float32",),
        says=_SAYS,
    ),
    mutant(
        "time-embedding-in-bfloat16",
        _PREPARE,
        '("time_embedding", "class_embedding")',
        '("class_embedding",)',
        stages=_CHECKED,
        options="--precision bf16",
        also=(f"{_FILE} _keep_float32",),
        says=_SAYS,
    ),
    mutant(
        "input-rounded",
        _ADAPTER,
        "torch.cat(inputs, dim=1).to(dtype)",
        "torch.cat(inputs, dim=1).bfloat16().to(dtype)",
        says=_SAYS,
    ),
    mutant(
        "light-rounded-to-half",
        _ADAPTER,
        "conditions.embedding.float()",
        "conditions.embedding.bfloat16().float()",
        says=_SAYS,
    ),
    mutant(
        "loss-in-bfloat16",
        f"{_FLOW} loss_per_sample",
        "(predicted.float() - target.float())",
        "(predicted.bfloat16() - target.bfloat16()).float()",
        also=(f"{_FLOW} RectifiedFlow.loss", "shadowlab/training/step.py objective_loss"),
        says=_SAYS,
    ),
    mutant(
        "timesteps-in-bfloat16",
        f"{_FLOW} RectifiedFlow.timesteps",
        "return 1000.0 * (1.0 - t.float())",
        "return (1000.0 * (1.0 - t.float())).bfloat16().float()",
        says=_SAYS,
    ),
    mutant(
        "vae-in-half",
        "shadowlab/models/vae.py ImageVae.__init__",
        "self.autoencoder = model.float().eval()",
        "self.autoencoder = model.bfloat16().float().eval()",
        says=(*_SAYS, "VAE"),
    ),
    mutant(
        "weights-rounded",
        "shadowlab/training/trainee.py prepare_unet",
        "    POLICIES[config.precision].prepare(unet)",
        "    POLICIES[config.precision].prepare(unet.bfloat16().float())",
        also=(_PREPARE, "shadowlab/training/trainee.py build_unet"),
        says=_SAYS,
    ),
    mutant(
        "nan-hidden",
        _ADAPTER,
        "class_labels=embedding).sample.float()",
        "class_labels=embedding).sample.float().nan_to_num()",
        says=("NaN", "finite", "nan"),
    ),
    mutant(
        "nan-gradients-set-to-zero",
        "shadowlab/training/step.py _accumulate",
        "losses.append(per_sample.detach())",
        "losses.append(per_sample.detach())\n"
        "        for parameter in learner.parameters().values():\n"
        "            if parameter.grad is not None:\n"
        "                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)",
        stages=_CHECKED,
        says=("NaN", "finite", "nan"),
    ),
)
