"""Split and order: who is trained on, who is held out, and in which order samples come."""

from shadowlab.bench.mutants.mutant import Stage, mutant

_SPLIT = "shadowlab/data/split.py split_by_object"
_ORDER = "shadowlab/data/order.py"
_LOADER = "shadowlab/data/loader.py"
_SETUP = "shadowlab/stages/train/setup.py"
_BOTH: tuple[Stage, ...] = ("check-forward", "train")
_HELD_OUT = ("disjoint", "validation", "held out", "held-out")
_SAYS = ("order", "epoch", "repeat")

SPLIT_AND_ORDER = (
    mutant(
        "validation-samples-are-trained-on",
        _SPLIT,
        "train=[i for i, name in enumerate(object_ids) if name not in held_out]",
        "train=[i for i, name in enumerate(object_ids)]",
        stages=_BOTH,
        also=(f"{_SETUP} _open_data",),
        says=_HELD_OUT,
    ),
    mutant(
        "training-samples-are-held-out",
        _SPLIT,
        "validation=[i for i, name in enumerate(object_ids) if name in held_out]",
        "validation=[i for i, name in enumerate(object_ids) if name not in held_out]",
        stages=_BOTH,
        also=(f"{_SETUP} _open_data",),
        says=_HELD_OUT,
    ),
    mutant(
        "objects-on-both-sides",
        f"{_SETUP} _open_data",
        "split_by_object(dataset.object_ids,",
        "split_by_object(dataset.ids,",
        stages=_BOTH,
        also=(_SPLIT,),
        says=_HELD_OUT,
    ),
    mutant(
        "number-among-all-samples",
        f"{_LOADER} _Stream.__getitem__",
        "return self._read(self._indices[index], position)",
        "return self._read(index, position)",
        stages=_BOTH,
        also=(f"{_LOADER} endless_batches",),
        says=_HELD_OUT,
    ),
    mutant(
        "same-order-in-every-epoch",
        f"{_ORDER} _epoch_order",
        'permutation(length, seed, "order", epoch)',
        'permutation(length, seed, "order", 0)',
        also=(f"{_ORDER} sample_indices", f"{_LOADER} endless_batches"),
        says=_SAYS,
    ),
    mutant(
        "never-shuffled",
        f"{_ORDER} _epoch_order",
        'return permutation(length, seed, "order", epoch)',
        'return permutation(length, seed, "order", epoch).sort().values',
        also=(f"{_ORDER} sample_indices", f"{_LOADER} endless_batches"),
        says=_SAYS,
    ),
    mutant(
        "drawn-with-repeats",
        "shadowlab/seeding.py permutation",
        "torch.randperm(length, generator",
        "torch.randint(length, (length,), generator",
        also=(f"{_ORDER} _epoch_order", f"{_ORDER} sample_indices", f"{_LOADER} endless_batches"),
        says=_SAYS,
    ),
    mutant(
        "half-of-the-samples-never-seen",
        f"{_ORDER} sample_indices",
        "[offset : offset + remaining].tolist()",
        "[offset : offset + remaining].floor_divide(2).tolist()",
        also=(f"{_LOADER} endless_batches",),
        says=(*_SAYS, "seen"),
    ),
    mutant(
        "same-batch-forever",
        f"{_LOADER} _EndlessSampler.__iter__",
        "first += batch_size * accumulation * count",
        "first += 0 * batch_size * accumulation * count",
        also=(f"{_LOADER} endless_batches",),
        says=_SAYS,
    ),
    mutant(
        "stream-too-slow",
        f"{_LOADER} _EndlessSampler.__iter__",
        "first += batch_size * accumulation * count",
        "first += batch_size // 2 * accumulation * count",
        also=(f"{_LOADER} endless_batches",),
        says=_SAYS,
    ),
    mutant(
        "micro-batches-overlap",
        f"{_LOADER} micro_batch_positions",
        "(m * num_processes + rank) * batch_size",
        "(m * num_processes + rank) * (batch_size // 2)",
        options="--set train.gradient_accumulation_steps=2",
        also=(f"{_LOADER} endless_batches", f"{_LOADER} _EndlessSampler.__iter__"),
        says=_SAYS,
    ),
    mutant(
        "samples-and-positions-out-of-step",
        f"{_LOADER} _EndlessSampler.__iter__",
        "sample_indices(positions[0], batch_size,",
        "sample_indices(positions[0] + 1, batch_size,",
        also=(f"{_LOADER} endless_batches",),
        says=_SAYS,
    ),
)
