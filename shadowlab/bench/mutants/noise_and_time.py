"""Noise and t: which of them meet which sample in which step."""

from shadowlab.bench.mutants.mutant import mutant

_STEP = "shadowlab/training/step.py"
_LOSS = f"{_STEP} objective_loss"
_TIMES = f"{_STEP} sample_times"
_SEEDING = "shadowlab/seeding.py"
_DRAWN = '"noise", position) for position in batch.positions.tolist()]'
_OWN_T = "t = _times(trainee, batch, place).to(device, non_blocking=True)"
_ON_DEVICE = "noise = noise.to(device, non_blocking=True)"

NOISE_AND_TIME = (
    mutant("noise-of-the-step", _LOSS, _DRAWN, '"noise", place.step) for position in batch.positions.tolist()]'),
    mutant("noise-constant", _LOSS, _DRAWN, '"noise", 0) for position in batch.positions.tolist()]'),
    mutant("noise-of-the-row", _LOSS, _DRAWN, '"noise", position) for position in range(len(batch))]'),
    mutant(
        "noise-repeated-in-pairs",
        _LOSS,
        _DRAWN,
        '"noise", position // 2) for position in batch.positions.tolist()]',
    ),
    mutant("noise-of-another-sample", _LOSS, _ON_DEVICE, f"{_ON_DEVICE}.flip(0)"),
    mutant("noise-too-small", _LOSS, _ON_DEVICE, f"{_ON_DEVICE} * 0.7"),
    mutant("noise-uniform", f"{_SEEDING} normal", "torch.randn(tuple(shape)", "torch.rand(tuple(shape)", also=(_LOSS,)),
    mutant("t-always-zero", _LOSS, _OWN_T, f"{_OWN_T} * 0.0", also=(f"{_STEP} _times",), says=("t is", "every t")),
    mutant("t-only-early", _LOSS, _OWN_T, f"{_OWN_T} * 0.5"),
    mutant(
        "t-of-another-sample",
        _LOSS,
        "objective.timesteps(t), batch.conditions",
        "objective.timesteps(t.flip(0)), batch.conditions",
    ),
    mutant(
        "t-the-same-in-a-batch",
        _TIMES,
        "stratified_times(1, offset, int(p), stride",
        "stratified_times(1, offset, 0, stride",
        also=(_LOSS,),
    ),
    mutant(
        "t-the-same-in-every-step", _TIMES, 'generator(seed, "t", place.step)', 'generator(seed, "t", 0)', also=(_LOSS,)
    ),
    mutant(
        "t-repeated-in-each-micro-batch",
        _TIMES,
        "positions - place.first_position, place.global_batch",
        "positions - positions[0], place.global_batch",
        options="--set train.gradient_accumulation_steps=2",
        also=(_LOSS,),
    ),
    mutant(
        "t-spread-over-the-micro-batch-alone",
        _TIMES,
        "positions - place.first_position, place.global_batch",
        "positions - place.first_position, len(positions)",
        options="--set train.gradient_accumulation_steps=2",
        also=(_LOSS,),
    ),
    mutant(
        "t-off-by-half-a-gap",
        "shadowlab/models/flow.py stratified_times",
        "t = torch.remainder(offset + index / stride, 1.0)",
        "t = torch.remainder(offset + (index + 0.5) / stride, 1.0)",
        also=(_TIMES, _LOSS),
    ),
    mutant(
        "pure-noise-share-inverted",
        "shadowlab/models/flow.py stratified_times",
        "torch.where(t < noise_share, 0.0,",
        "torch.where(t > noise_share, 0.0,",
        options="--set train.noise_share=0.25",
        also=(_TIMES, _LOSS),
    ),
    mutant(
        "pure-noise-share-ignored",
        f"{_STEP} _times",
        "place, trainee.noise_share)",
        "place)",
        options="--set train.noise_share=0.5",
        also=(_TIMES, _LOSS),
    ),
    mutant(
        "seed-ignored",
        f"{_SEEDING} derive_seed",
        "[str(seed), purpose,",
        '["0", purpose,',
        options="--seed 3",
        also=(f"{_SEEDING} generator", f"{_SEEDING} normal", _LOSS),
    ),
    mutant(
        "counters-ignored",
        f"{_SEEDING} derive_seed",
        "purpose, *map(str, counters)]",
        "purpose]",
        also=(f"{_SEEDING} generator", f"{_SEEDING} normal", f"{_SEEDING} permutation", _LOSS),
    ),
    mutant(
        "noise-stays-while-samples-go-on",
        "shadowlab/stages/train/train.py _loop",
        "step + 1, position + opened.global_batch",
        "step + 1, position",
        also=("shadowlab/stages/train/train.py _encode",),
        says=("position", "noise"),
    ),
)
