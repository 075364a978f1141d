"""The average of the weights, and what validation does with it."""

from shadowlab.bench.mutants.mutant import Edit, Stage, mutant

_TRAINEE = "shadowlab/training/trainee.py"
_STEP = "shadowlab/training/step.py"
_BUILD = f"{_TRAINEE} build_trainee"
_UPDATE = f"{_TRAINEE} Trainee.update_average"
_AVERAGED = f"{_TRAINEE} Trainee.averaged_weights"
_STEPPED = "self.ema.step([local(parameter) for parameter in parameters])"
_CALL = "    learner.update_average(parameters.values())\n"
_BOTH: tuple[Stage, ...] = ("check-forward", "train")
_SAYS = ("EMA", "average")

AVERAGE = (
    mutant("average-never-moves", _UPDATE, _STEPPED, "self.ema.optimization_step += 1", stages=_BOTH, says=_SAYS),
    mutant(
        "average-is-the-weights",
        _BUILD,
        "decay=ema_decay, foreach",
        "decay=0.0, foreach",
        stages=_BOTH,
        says=_SAYS,
        also=(_UPDATE,),
    ),
    mutant(
        "average-with-another-decay",
        _BUILD,
        "decay=ema_decay, foreach",
        "decay=min(0.1, ema_decay), foreach",
        stages=_BOTH,
        says=_SAYS,
        also=(_UPDATE,),
    ),
    mutant(
        "average-of-the-old-weights",
        f"{_STEP} _step",
        _CALL,
        "",
        more=(Edit(_STEP, '    processes.at("optimizer")\n', f'    processes.at("optimizer")\n{_CALL}'),),
        stages=_BOTH,
        says=_SAYS,
    ),
    mutant("average-updated-twice", f"{_STEP} _step", _CALL, _CALL * 2, stages=_BOTH, says=_SAYS),
    mutant(
        "average-in-half",
        _BUILD,
        "ema.to(dtype=torch.float32)",
        "ema.to(dtype=torch.bfloat16)",
        stages=_BOTH,
        says=_SAYS,
    ),
    mutant(
        "average-not-judged",
        _AVERAGED,
        "torch._foreach_copy_(parameters, self.ema.shadow_params)",
        "torch._foreach_copy_(parameters, own)",
        stages=_BOTH,
        says=_SAYS,
        also=("shadowlab/stages/train/validation.py validate",),
    ),
    mutant(
        "weights-are-the-average-after-validation",
        _AVERAGED,
        "            torch._foreach_copy_(parameters, own)",
        "            parameters.clear()",
        stages=_BOTH,
        says=(*_SAYS, "validation"),
        also=("shadowlab/stages/train/validation.py validate",),
    ),
    mutant(
        "validation-of-the-raw-weights",
        "shadowlab/stages/train/validation.py validate",
        "with trainee.averaged_weights():",
        'with __import__("contextlib").nullcontext():',
        stages=_BOTH,
        says=(*_SAYS, "validation"),
        also=(_AVERAGED,),
    ),
)
