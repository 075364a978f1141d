"""What a resumed run is configured as: what it was, with the changes asked for, if they do not make it another run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowlab.errors import UserError
from shadowlab.runs.folder import RunFolder
from shadowlab.settings import TASK_MODEL, Config, describe_keys, load_config, preset_names, values


def resumed_config(
    run: RunFolder,
    *,
    source: str | None,
    options: Mapping[str, Any],
    assignments: Sequence[str],
    file: str | Path | None = None,
    num_processes: int | None = None,
) -> Config:
    """The run's own configuration, or what `file` says now, with `options` and `assignments` on top.

    Another number of processes gets another gradient accumulation, if none is asked for, so that every step has the
    samples that it would have had.

    Args:
        source: preset or file named on the command line, if any; it must be the one that the run began with.
        file: what --config was given. A file may have been edited since: what it says counts like options given now.
            A preset's name stands for the run's own configuration.
        num_processes: that a launcher started; None: what the configuration says.

    Raises:
        UserError: another source, or a key differs that would change what the run computes; names both values. Or the
            processes cannot share the effective batch.
    """
    if source is not None and source != run.source:
        raise UserError(
            f"--resume: {run.path} began with {run.source or 'another configuration'}, not {source}; "
            "leave --preset and --config out (the run's own config.yaml is used) or start anew with another --run"
        )
    saved = run.saved_config()
    own = file is None or str(file) in preset_names()
    base = run.path / "config.yaml" if own or file is None else file
    given = load_config(file=base, options=options, assignments=assignments)
    before, after = values(saved), values(given)
    kept = _kept()
    for key, value in after.items():
        if before.get(key) != value and any(key == name or key.startswith(f"{name}.") for name in kept):
            fix = "take the option back" if own else f"take it back in {file}, or give it as an option"
            raise UserError(
                f"--resume: {key} was {before.get(key)!r} in {run.path} and is {value!r} now, which would make it "
                f"another run (its learning rate may change, its {_what(key)} may not); {fix}, or start anew with "
                "another --run"
            )
    return _shared_among(given, saved, num_processes or given.distributed.processes)


def _kept() -> list[str]:
    """Keys that decide weights or data order; all others may change on resume.

    Those that decide the learning rate may: it is a function of the step alone, so that no state remembers another.
    Batch size, accumulation and the number of processes may be exchanged for one another: their product is compared
    with the checkpoint's. So may data.latents: the cache holds the same samples' latents, of the same VAE, up to the
    last bits (batches of one).
    """
    kept = [key.name for key in describe_keys() if key.marks.decides in ("model", "numbers")]
    return [*kept, f"task_options.{TASK_MODEL}"]


def _what(key: str) -> str:
    section = key.partition(".")[0]
    return section if section in ("model", "data", "optimizer") else key


def effective_batch(config: Config) -> int:
    """Samples of one optimizer step."""
    return config.train.batch_size * config.train.gradient_accumulation_steps * config.distributed.processes


def with_processes(config: Config, count: int) -> Config:
    """The configuration of a run that `count` processes really make."""
    return config.model_copy(update={"distributed": config.distributed.model_copy(update={"processes": count})})


def _shared_among(config: Config, saved: Config, count: int) -> Config:
    config = with_processes(config, count)
    wanted, batch = effective_batch(saved), config.train.batch_size
    asked_for = [(one.train.batch_size, one.train.gradient_accumulation_steps) for one in (config, saved)]
    if effective_batch(config) == wanted or asked_for[0] != asked_for[1]:
        return config
    accumulation, rest = divmod(wanted, batch * count)
    if rest:
        raise UserError(
            f"--resume: the run's effective batch of {wanted} cannot be shared by {count} processes with "
            f"train.batch_size={batch}; use a number of processes that divides {wanted}, and a batch_size that "
            "divides what is left"
        )
    return config.model_copy(
        update={"train": config.train.model_copy(update={"gradient_accumulation_steps": accumulation})}
    )


def changes(before: Config, after: Config) -> list[str]:
    """`key old -> new` of every key that differs."""
    old, new = values(before), values(after)
    return [f"{key} {old.get(key)!r} -> {value!r}" for key, value in new.items() if old.get(key) != value]
