"""Several processes: ranks that draw the same, gradients averaged never or twice, one rank's numbers for all."""

from shadowlab.bench.mutants.mutant import CodeMutant, Stage
from shadowlab.bench.mutants.mutant import mutant as one

_LOADER = "shadowlab/data/loader.py"
_PROCESSES = "shadowlab/distributed/processes.py"
_STEP = "shadowlab/training/step.py"
_SETUP = "shadowlab/stages/train/setup.py"
_BOTH: tuple[Stage, ...] = ("check-forward", "train")
_TWO = "--processes 2"
_SHARDED = "--set distributed.strategy=fsdp2"


def mutant(
    name: str, place: str, old: str, new: str, *, options: str = "", also: tuple[str, ...] = (), says: tuple[str, ...]
) -> CodeMutant:
    return one(name, place, old, new, stages=_BOTH, options=f"{_TWO} {options}", also=also, says=(*says, "rank"))


DISTRIBUTED = (
    mutant(
        "ranks-read-the-same-samples",
        f"{_LOADER} micro_batch_positions",
        "(m * num_processes + rank) * batch_size",
        "(m * num_processes + 0 * rank) * batch_size",
        also=(f"{_LOADER} endless_batches", f"{_LOADER} _EndlessSampler.__iter__"),
        says=("samples",),
    ),
    mutant(
        "ranks-draw-the-same-noise",
        "shadowlab/stages/train/train.py _encode",
        "settings.gradient_accumulation_steps, processes.rank, processes.count",
        "settings.gradient_accumulation_steps, 0, processes.count",
        says=("noise",),
    ),
    mutant(
        "ranks-shuffle-differently",
        f"{_SETUP} open_training",
        "seed=config.seed,\n        first_position",
        "seed=config.seed + processes.rank,\n        first_position",
        also=(f"{_LOADER} endless_batches",),
        says=("samples", "order"),
    ),
    mutant(
        "ranks-split-differently",
        f"{_SETUP} _open_data",
        "config.data.validation_fraction, config.seed, held_out)",
        "config.data.validation_fraction, config.seed + processes.rank, held_out)",
        says=("split", "validation"),
    ),
    mutant(
        "ranks-start-with-other-weights",
        "shadowlab/models/unet.py load_unet",
        'torch.manual_seed(derive_seed(seed, "unet"))',
        'torch.manual_seed(derive_seed(seed, "unet") + int(__import__("os").environ.get("RANK", "0")))',
        options=_SHARDED,
        says=("weights",),
    ),
    mutant(
        "gradients-never-averaged",
        f"{_STEP} _accumulate",
        "if isinstance(model, DistributedDataParallel) and not last else nullcontext()",
        "if isinstance(model, DistributedDataParallel) else nullcontext()",
        says=("gradient",),
    ),
    mutant(
        "gradients-averaged-twice",
        f"{_STEP} _accumulate",
        "loss = per_sample.mean() / len(loss_functions)",
        "loss = per_sample.mean() / len(loss_functions) / learner.processes.count",
        says=("gradient",),
    ),
    mutant(
        "gradients-summed-over-ranks",
        f"{_STEP} _accumulate",
        "loss = per_sample.mean() / len(loss_functions)",
        "loss = per_sample.mean() / len(loss_functions) * learner.processes.count",
        says=("gradient",),
    ),
    mutant(
        "model-not-wrapped",
        f"{_PROCESSES} Processes.wrap",
        "        return self._parallel\n",
        "        return model\n",
        also=("shadowlab/training/trainee.py build_trainee",),
        says=("gradient",),
    ),
    mutant(
        "sharding-left-out",
        f"{_PROCESSES} Processes.wrap",
        "shard(model, init_device_mesh(self.device.type, (self.count,)))",
        "init_device_mesh(self.device.type, (self.count,))",
        options=_SHARDED,
        also=("shadowlab/distributed/sharding.py shard",),
        says=("gradient", "shard"),
    ),
    mutant(
        "loss-of-one-rank",
        f"{_PROCESSES} Processes.mean",
        "        torch.distributed.all_reduce(value)\n        return value / self.count",
        "        return value",
        says=("loss",),
    ),
    mutant(
        "loss-summed-over-ranks",
        f"{_PROCESSES} Processes.mean",
        "return value / self.count",
        "return value",
        says=("loss",),
    ),
    mutant(
        "gathered-from-one-rank",
        f"{_PROCESSES} Processes.gather",
        "return [item for one in lists for item in one]",
        "return [item for one in lists for item in lists[0]]",
        says=("gather", "validation"),
    ),
    mutant(
        "finite-where-any-rank-is",
        f"{_PROCESSES} Processes.all_true",
        "torch.distributed.ReduceOp.MIN",
        "torch.distributed.ReduceOp.MAX",
        says=("finite",),
    ),
    mutant(
        "schedule-once-for-each-process",
        f"{_STEP} _step",
        "rate = learning_rate(config, step, learner.max_steps)",
        "rate = learning_rate(config, step * processes.count, learner.max_steps)",
        says=("rate",),
    ),
)
