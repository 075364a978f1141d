"""What a resumed run is configured as: what it was, with the changes asked for, if they do not make it another run."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from shadowlab.config import Config
from shadowlab.config_files import dump_config, load_config
from shadowlab.errors import UserError
from shadowlab.run_folder import RunFolder

# Sections and keys that decide weights or data order; all others may change on resume.
_DECISIVE = (
    "seed",
    "precision",
    "model",
    "data.path",
    "data.image_size",
    "data.validation_fraction",
    "optimizer",
    "train.batch_size",
    "train.gradient_accumulation_steps",
    "train.ema_decay",
)


def resumed_config(
    run: RunFolder,
    *,
    preset: str | None,
    file: str | None,
    options: Mapping[str, Any],
    assignments: Sequence[str],
) -> Config:
    """The saved configuration with `options` and `assignments` on top; a preset or file given again replaces it.

    Raises:
        UserError: a key differs that would change what the run computes; names it with both values.
    """
    saved = run.saved_config()
    if preset is None and file is None:
        given = load_config(file=run.path / "config.yaml", options=options, assignments=assignments)
    else:
        given = load_config(preset=preset, file=file, options=options, assignments=assignments)
    before, after = _flat(saved), _flat(given)
    decisive = list(_DECISIVE)
    if given.optimizer.schedule == "cosine":
        decisive.append("train.max_steps")  # the cosine ends there
    for key, value in after.items():
        if before[key] != value and any(key == name or key.startswith(f"{name}.") for name in decisive):
            raise UserError(
                f"--resume: {key} was {before[key]!r} in {run.path} and is {value!r} now, which would make it another "
                "run; take the option back, or start anew with another --run"
            )
    return given


def _flat(config: Config) -> dict[str, Any]:
    tree = yaml.safe_load(dump_config(config))
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat
