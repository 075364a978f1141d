"""The optimizer: its arguments, its schedule, and which tensors it holds."""

from shadowlab.bench.mutants.mutant import mutant

_OPTIMIZER = "shadowlab/training/optimizer.py"
_ADAMW = f"{_OPTIMIZER} adamw"
_RATE = f"{_OPTIMIZER} learning_rate"
_TRAINEE = "shadowlab/training/trainee.py"
_BUILD = f"{_TRAINEE} build_trainee"
_MADE = "optimizer = build_optimizer(parameters, optimizer_config)"
_COSINE = "--set optimizer.schedule=cosine"
_SCHEDULED = (f"{_RATE}", "shadowlab/training/step.py _step")

OPTIMIZER = (
    mutant("betas-exchanged", _ADAMW, "(config.beta1, config.beta2)", "(config.beta2, config.beta1)", also=(_BUILD,)),
    mutant("beta2-ignored", _ADAMW, "(config.beta1, config.beta2)", "(config.beta1, 0.999)", also=(_BUILD,)),
    mutant("decay-ignored", _ADAMW, "weight_decay=config.weight_decay", "weight_decay=0.0", also=(_BUILD,)),
    mutant(
        "decay-tenfold",
        _ADAMW,
        "weight_decay=config.weight_decay",
        "weight_decay=10 * config.weight_decay",
        also=(_BUILD,),
    ),
    mutant("decay-in-the-gradient", _ADAMW, "return torch.optim.AdamW(", "return torch.optim.Adam(", also=(_BUILD,)),
    mutant("eps-too-large", _ADAMW, "eps=config.eps", "eps=1e-3", also=(_BUILD,)),
    mutant(
        "optimizer-settings-ignored",
        _BUILD,
        "learning_rate_config=optimizer_config",
        "learning_rate_config=OptimizerConfig()",
        also=_SCHEDULED,
    ),
    mutant(
        "warm-up-missing",
        _RATE,
        "return config.learning_rate * (step + 1) / config.warmup_steps",
        "return config.learning_rate",
        also=_SCHEDULED,
    ),
    mutant(
        "warm-up-too-short",
        _RATE,
        "(step + 1) / config.warmup_steps",
        "min(1.0, 4 * (step + 1) / config.warmup_steps)",
        also=_SCHEDULED,
    ),
    mutant(
        "cosine-from-the-start",
        _RATE,
        "(step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)",
        "step / max_steps",
        options=_COSINE,
        also=_SCHEDULED,
    ),
    mutant(
        "cosine-to-a-half",
        _RATE,
        "0.5 * (1.0 + math.cos(math.pi * progress))",
        "0.5 * (1.0 + math.cos(0.5 * math.pi * progress))",
        options=_COSINE,
        also=_SCHEDULED,
    ),
    mutant(
        "last-tensors-without-optimizer",
        _BUILD,
        _MADE,
        "optimizer = build_optimizer(parameters[:-20], optimizer_config)",
    ),
    mutant(
        "class-embedding-without-optimizer",
        _BUILD,
        _MADE,
        "optimizer = build_optimizer(\n"
        "        [p for n, p in unet.named_parameters() if p.requires_grad and not n.startswith('class_embedding')],\n"
        "        optimizer_config,\n"
        "    )",
        says=("class_embedding",),
    ),
    mutant(
        "optimizer-holds-a-stranger",
        _BUILD,
        _MADE,
        "optimizer = build_optimizer([*parameters, torch.nn.Parameter(torch.zeros(3))], optimizer_config)",
    ),
    mutant(
        "optimizer-before-conv_in-was-replaced",
        _BUILD,
        _MADE,
        f"{_MADE}\n    unet.conv_in = __import__('copy').deepcopy(unet.conv_in)",
        says=("conv_in",),
    ),
    mutant(
        "middle-block-frozen",
        "shadowlab/models/surgery.py freeze",
        "parameter.requires_grad_(bool(own))",
        "parameter.requires_grad_(bool(own) and not name.startswith('mid_block'))",
        also=(f"{_TRAINEE} prepare_unet",),
        says=("mid_block",),
    ),
    mutant(
        "frozen-parts-train",
        "shadowlab/models/surgery.py freeze",
        "parameter.requires_grad_(bool(own))",
        "parameter.requires_grad_(True)",
        options="--set train.trainable=['*.attn1.*','conv_in.*','class_embedding.*']",
        also=(f"{_TRAINEE} prepare_unet",),
        says=("frozen",),
    ),
    mutant(
        "conv_in-new-channels-without-gradient",
        "shadowlab/models/adapter.py predict",
        "[x_t, conditions.concatenated]",
        "[x_t, torch.where(conditions.concatenated > 9.0, conditions.concatenated, 0.0)]",
        says=("object", "mask", "conv_in"),
    ),
    mutant(
        "model-is-a-copy-of-the-unet",
        _BUILD,
        "model = processes.wrap(unet)",
        "model = processes.wrap(__import__('copy').deepcopy(unet))",
    ),
)
