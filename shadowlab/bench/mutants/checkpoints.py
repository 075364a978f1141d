"""Checkpoints and resuming: what is left out, taken from the wrong file, or started anew."""

from shadowlab.bench.mutants.mutant import Stage, mutant

_CHECKPOINT = "shadowlab/training/checkpoint.py"
_LOAD = f"{_CHECKPOINT} load_checkpoint"
_RESTORE = f"{_CHECKPOINT} _restore"
_STATE = "shadowlab/training/state.py training_state"
_SETUP = "shadowlab/stages/train/setup.py"
_BOTH: tuple[Stage, ...] = ("check-forward", "train")
_RESUMED = ("resume", "checkpoint", "round trip")

CHECKPOINTS = (
    mutant(
        "weights-not-restored",
        _LOAD,
        "_restore(named, named, weights)",
        "_restore({}, named, weights)",
        stages=_BOTH,
        also=(_RESTORE,),
        says=_RESUMED,
    ),
    mutant(
        "last-weights-not-restored",
        _RESTORE,
        "    for name, tensor in wanted.items():\n        assign(",
        "    for name, tensor in list(wanted.items())[:-6]:\n        assign(",
        stages=_BOTH,
        also=(_LOAD,),
        says=_RESUMED,
    ),
    mutant(
        "average-restored-from-the-weights",
        _LOAD,
        "_restore(averages, named, ema)",
        "_restore(averages, named, weights)",
        stages=_BOTH,
        also=(_RESTORE,),
        says=(*_RESUMED, "EMA"),
    ),
    mutant(
        "weights-restored-from-the-average",
        _LOAD,
        "_restore(named, named, weights)",
        "_restore(named, named, ema or weights)",
        stages=_BOTH,
        also=(_RESTORE,),
        says=(*_RESUMED, "EMA"),
    ),
    mutant(
        "average-starts-anew",
        _LOAD,
        'trainee.ema.optimization_step = state["ema_updates"]',
        "trainee.ema.optimization_step = 0",
        stages=_BOTH,
        says=(*_RESUMED, "EMA"),
    ),
    mutant(
        "moments-not-restored",
        _LOAD,
        "restore_optimizer(optimizer, named, saved, converts=converts)",
        "assert optimizer is not None",
        stages=_BOTH,
        also=("shadowlab/training/optimizer_state.py restore_optimizer",),
        says=(*_RESUMED, "optimizer"),
    ),
    mutant(
        "moments-of-another-parameter",
        "shadowlab/training/optimizer_state.py restore_optimizer",
        "optimizer.state[parameter] = reader.read(saved.state[name], name, parameter.device, live)",
        "optimizer.state[parameter] = reader.read(saved.state[name], name, parameter.device, live)\n"
        '        optimizer.state[parameter]["exp_avg_sq"].mul_(0.01)',
        stages=_BOTH,
        also=(_LOAD,),
        says=(*_RESUMED, "optimizer"),
    ),
    mutant(
        "scaler-not-restored",
        _LOAD,
        'trainee.scaler.load_state_dict(state["scaler"])',
        'assert state["scaler"]',
        stages=_BOTH,
        options="--precision fp16",
        says=(*_RESUMED, "scaler"),
    ),
    mutant(
        "saved-weights-are-the-average",
        _STATE,
        "weights=weights,",
        "weights=averages or weights,",
        stages=_BOTH,
        says=(*_RESUMED, "EMA"),
    ),
    mutant(
        "saved-average-is-the-weights",
        _STATE,
        "averages = weights | _gathered(trainee, _averages(trainee), named)",
        "averages = dict(weights)",
        stages=_BOTH,
        says=(*_RESUMED, "EMA"),
    ),
    mutant(
        "saved-in-half-precision",
        "shadowlab/training/state.py _gathered",
        "return {name: tensor.detach() for name, tensor in tensors.items()}",
        "return {name: tensor.detach().bfloat16().to(tensor.dtype) for name, tensor in tensors.items()}",
        stages=_BOTH,
        also=(_STATE,),
        says=_RESUMED,
    ),
    mutant(
        "stream-starts-anew-on-resume",
        f"{_SETUP} _restore",
        'return state["step"], state["position"]',
        'return state["step"], 0',
        stages=_BOTH,
        also=(_LOAD,),
        says=(*_RESUMED, "order", "position"),
    ),
    mutant(
        "saved-position-is-the-step",
        _STATE,
        '"position": position,',
        '"position": step,',
        stages=_BOTH,
        says=(*_RESUMED, "order", "position"),
    ),
    mutant(
        "oldest-checkpoint-taken",
        "shadowlab/training/checkpoint_files.py newest_sound_checkpoint",
        "for path in reversed(checkpoint_folders(folder)):",
        "for path in checkpoint_folders(folder):",
        stages=_BOTH,
        also=(f"{_SETUP} _restore",),
        says=_RESUMED,
    ),
    mutant(
        "resume-looks-in-another-folder",
        f"{_SETUP} _start",
        "fresh = not resume or not checkpoint_folders(run.checkpoints)",
        'fresh = not resume or not checkpoint_folders(run.path / "checkpoint")',
        stages=_BOTH,
        says=_RESUMED,
    ),
    mutant(
        "resume-ignores-the-weights",
        f"{_SETUP} _start",
        "step, position = (0, 0) if fresh else _restore(run, trainee, identity, session.reporter)",
        "step, position = (0, 0) if fresh else _restore(run, trainee, identity, session.reporter)\n"
        "    if not fresh:\n"
        "        fresh_unet = build_unet(session.config, session.task.spec, trainee.device)\n"
        "        trainee.unet.load_state_dict(fresh_unet.state_dict())",
        stages=_BOTH,
        also=(f"{_SETUP} _restore", _LOAD),
        says=_RESUMED,
    ),
)
