"""The fixed grid: what is judged, at which t, with which noise, against what."""

from shadowlab.bench.mutants.mutant import Stage, mutant

_GRID = "shadowlab/evaluation/fixed_grid.py"
_PART = f"{_GRID} FixedGrid._part"
_EVALUATE = f"{_GRID} FixedGrid.evaluate"
_VALIDATION = "shadowlab/stages/train/validation.py"
_CHECKED: tuple[Stage, ...] = ("check-forward", "overfit", "train")

VALIDATION = (
    mutant(
        "validation-on-training-samples",
        f"{_VALIDATION} validation_grid",
        "[split.validation[i * len(split.validation) // wanted] for i in range(wanted)]",
        "[split.train[i * len(split.train) // wanted] for i in range(wanted)]",
        stages=("check-forward", "train"),
        says=("validation",),
    ),
    mutant(
        "validation-on-one-object",
        f"{_VALIDATION} validation_grid",
        "[split.validation[i * len(split.validation) // wanted] for i in range(wanted)]",
        "[split.validation[i % 2] for i in range(wanted)]",
        stages=("check-forward", "train"),
        says=("validation",),
    ),
    mutant(
        "validation-at-one-t",
        _PART,
        "times = torch.full((len(rows),), t, device=eps.device)",
        "times = torch.full((len(rows),), 0.95, device=eps.device)",
        also=(_EVALUATE,),
    ),
    mutant(
        "validation-tells-another-t",
        _PART,
        "encoded.data, times), times)",
        "encoded.data, times), 0.5 * times)",
        also=(_EVALUATE,),
    ),
    mutant(
        "validation-of-the-best-sample",
        _EVALUATE,
        "for part in parts]).mean())",
        "for part in parts]).min())",
        stages=_CHECKED,
    ),
    mutant(
        "validation-with-the-truth",
        _PART,
        "pictures = self.task.decode(latents)",
        "pictures = self.task.decode(encoded.data)",
        also=(_EVALUATE,),
    ),
    mutant(
        "validation-of-noised-truth",
        _PART,
        "latents = objective.generate(predicted_at, eps, 1)",
        "latents = objective.generate(predicted_at, 0.1 * eps + 0.9 * encoded.data, 1)",
        also=(_EVALUATE,),
    ),
    mutant(
        "r2-against-itself",
        f"{_GRID} _where_known",
        "return generated, data",
        "return generated, 0.97 * generated",
        also=(_EVALUATE,),
        says=("R^2", "r2"),
    ),
    mutant(
        "validation-with-one-noise-for-all",
        f"{_GRID} FixedGrid.__init__",
        '"grid", name, k)',
        '"grid", k)',
        also=(_EVALUATE,),
    ),
    mutant(
        "validation-against-another-sample",
        _PART,
        "self.task.judge(pictures, self.batch.select(rows))",
        "self.task.judge(pictures, self.batch.select(rows.roll(1)))",
        also=(_EVALUATE,),
    ),
    mutant(
        "validation-of-another-light",
        _PART,
        "self.encoded.select(rows), noise[rows]",
        "self.encoded.select(rows.roll(1)), noise[rows]",
        also=(_EVALUATE,),
    ),
    mutant(
        "validation-leaves-evaluation-mode",
        _EVALUATE,
        "            unet.train(was_training)\n        parts.sort",
        "            unet.eval()\n        parts.sort",
        says=("mode",),
    ),
    mutant(
        "validation-changes-the-weights",
        _EVALUATE,
        "            unet.train(was_training)\n        parts.sort",
        "            unet.train(was_training)\n"
        "            for parameter in unet.parameters():\n"
        "                parameter.mul_(0.999)\n"
        "        parts.sort",
        says=("validation",),
        also=(f"{_VALIDATION} validate",),
    ),
)
