"""Where a model that can be used lies: a run, one of its checkpoints, an exported folder, or a model that ships.

An exported folder has `shadowlab.yaml` (the configuration), `unet/` and, where the VAE is not the embedded one, `vae/`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import shadowlab
from diagnostics.files import is_inside
from shadowlab.errors import UserError
from shadowlab.runs import BEST, best_step, run_places, telling_where
from shadowlab.training import checkpoint_folders, complete_checkpoints, step_of

CONFIG_NAME = "shadowlab.yaml"
"""Of an exported folder: what makes it one."""
SHIPPED_FOLDER = Path(shadowlab.__file__).parent / "assets" / "models"


@dataclass(frozen=True)
class ModelPlace:
    """Files of one model. None of them was read yet."""

    folder: Path
    """That all files but a run's configuration lie in."""
    config: Path
    """YAML file of the whole configuration."""
    unets: Mapping[str, Path]
    """`ema`, `raw` or `exported` -> folder of config.json and weights."""
    vae: Path | None
    """Folder of a VAE that is kept next to the UNet; None: the configuration's."""
    step: int | None
    """Of the checkpoint; None where it is not known."""
    name: str
    """For people."""


def shipped_models() -> list[str]:
    """Names of the models that come with the package, in alphabetical order."""
    return sorted(file.parent.name for file in SHIPPED_FOLDER.glob(f"*/{CONFIG_NAME}"))


def find_model(place: str | Path, output_dir: str | None = None) -> ModelPlace:
    """The model that a user names.

    Args:
        place: a run (its folder, its name below `output_dir`, or `latest` for the newest run with a checkpoint), of
            which the newest complete checkpoint is taken, or, of `RUN@best` and `RUN@best:METRIC`, the one that
            validation judged best; a checkpoint's folder; an exported folder; the name of a model that ships. A folder
            comes before a model that ships.
        output_dir: where runs are looked for by their names; None: `runs`.

    Raises:
        UserError: there is no such place, or it has no complete model.
    """
    text, at_best, metric = str(place).partition(BEST)
    if at_best and not os.path.lexists(str(place)):
        return _best(text, metric.removeprefix(":") or None, output_dir)
    text = str(place)
    with telling_where():
        candidates = list(dict.fromkeys(run_places(text, output_dir, having="checkpoint")))
        for candidate in candidates:
            found = _model_at(candidate)
            if found is not None:
                return found
        if text in shipped_models():
            return _exported(SHIPPED_FOLDER / text, f"{text}, which ships with shadowlab")
        there = next((candidate for candidate in candidates if candidate.exists()), None)
    what = f"{text}: no such model, here or in {candidates[-1].parent}/" if there is None else f"{there}: no model"
    raise UserError(f"{what}; give {accepted()}")


def accepted() -> str:
    """What `find_model` takes, in words."""
    shipped = shipped_models()
    last = f", or {' or '.join(shipped)}, which ships" if shipped else ""
    return (
        "a run with a checkpoint (its folder, its name or latest), a checkpoint's folder (step-00001000), a folder of "
        f"shadowlab export{last}"
    )


def _model_at(place: Path) -> ModelPlace | None:
    if not place.is_dir():
        return None
    if (place / CONFIG_NAME).is_file():
        return _exported(place, str(place))
    if (place / "model_index.json").is_file():
        raise UserError(
            f"{place}: a pipeline of diffusers without {CONFIG_NAME}, so not one that shadowlab export wrote; give "
            f"{accepted()}"
        )
    if step_of(place) is not None and place in checkpoint_folders(place.parent):
        if place not in complete_checkpoints(place.parent):
            raise UserError(f"{place}: not a complete checkpoint; take another one of its run")
        return _checkpoint(place)
    if (place / "checkpoints").is_dir() or (place / "config.yaml").is_file():
        return _of_run(place)
    return None


def _best(text: str, metric: str | None, output_dir: str | None) -> ModelPlace:
    """The checkpoint of a run that validation judged best."""
    with telling_where():
        candidates = list(dict.fromkeys(run_places(text, output_dir, having="checkpoint")))
    run = next((one for one in candidates if (one / "checkpoints").is_dir()), None)
    if run is None:
        raise UserError(f"{text}{BEST}: no such run with checkpoints, here or in {candidates[-1].parent}/")
    folder = run / "checkpoints"
    complete = {step_of(one): one for one in complete_checkpoints(folder)} if is_inside(folder, run) else {}
    found = best_step(run / "metrics.jsonl", {step for step in complete if step is not None}, metric)
    if found is None:
        raise UserError(
            f"{run}: no checkpoint of it was judged; train validates each train.validate_every steps, and saves each "
            "checkpoint.every_steps. Name a checkpoint"
        )
    place = _checkpoint(complete[found.step])
    value = f"{found.metric.text} {found.value:{found.metric.form}}"
    return replace(place, name=f"{place.name}, the best by {value} ({found.metric.direction})")


def _of_run(run: Path) -> ModelPlace:
    folder = run / "checkpoints"
    complete = complete_checkpoints(folder) if is_inside(folder, run) else []
    if not complete:
        raise UserError(
            f"{run}: a run without a complete checkpoint; train writes one each checkpoint.every_steps steps and at "
            "its end"
        )
    return _checkpoint(complete[-1])


def _checkpoint(folder: Path) -> ModelPlace:
    run = folder.parent.parent
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(
            f"{folder}: a checkpoint without its run: {config} is missing; copy that file, too, or the whole run"
        )
    step = step_of(folder)
    unets = {"raw": folder / "unet"}
    if (folder / "ema").is_dir():
        unets["ema"] = folder / "ema"
    return ModelPlace(folder, config, unets, None, step, f"{run}, step {step}")


def _exported(folder: Path, name: str) -> ModelPlace:
    vae = folder / "vae"
    return ModelPlace(
        folder, folder / CONFIG_NAME, {"exported": folder / "unet"}, vae if vae.is_dir() else None, None, name
    )
