"""`--weights RUN`: a new run that starts from the weights of an earlier one of its task, found, judged and kept."""

import json
from dataclasses import dataclass
from pathlib import Path

from diagnostics.files import read_json, reason_of, replace_text, require_file, sha256_of
from shadowlab.errors import UserError
from shadowlab.inference.place import CONFIG_NAME, ModelPlace, find_model
from shadowlab.models import WEIGHTS_NAME, ModelSpec, weights_folder
from shadowlab.runs import Start, put, start_folder, with_own_start, with_weights
from shadowlab.settings import START_FILE, Config, load_kept_config
from shadowlab.tasks import keep_prompt, open_task
from shadowlab.training import step_of

_KINDS = {"ema": "ema", "unet": "raw"}
"""Folder of a checkpoint -> whose weights lie there."""


@dataclass(frozen=True)
class Starting:
    """Weights that fit, where they lie; nothing of them was loaded yet."""

    start: Start
    folder: Path
    """Of config.json and weights."""
    source: Config
    """Of the run that they are of."""
    tells_prompt: bool
    """Whether their cross-attention is told the empty prompt."""

    def keep(self, config: Config, run: Path) -> Config:
        """Put the weights into the new run's folder, with what its cross-attention is told, and name them there.

        Raises:
            UserError: the prompt that the model was told cannot be had any more.
            OSError: the disk refuses.
        """
        place = start_folder(run)
        place.mkdir(exist_ok=True)
        put(self.folder / WEIGHTS_NAME, place / WEIGHTS_NAME)
        unet = read_json(self.folder / "config.json")
        replace_text(place / "config.json", json.dumps(unet, indent=2, sort_keys=True) + "\n")
        if self.tells_prompt:
            keep_prompt(self.source, unet["cross_attention_dim"], place)
        replace_text(place / START_FILE, json.dumps(self.start.to_json(), indent=2) + "\n")  # last: it makes it one
        if config.model.vae == "same":
            model = config.model.model_copy(update={"vae": self.source.model.vae_source})
            config = config.model_copy(update={"model": model})
        return with_weights(config, str(place))


def starting_from(config: Config) -> Starting | None:
    """The run that `model.weights` names, judged; None where it names something else: random weights, a folder in
    diffusers' layout, a hub id.

    Raises:
        UserError: there is no such run, or its weights do not fit this model; names both.
    """
    text = config.model.weights
    found = _found(text, config.output_dir)
    if found is None:
        return None
    place, kind = found
    source = with_own_start(load_kept_config(place.config), place.config.parent)
    spec = _fitting(f"--weights {text}", config, source)
    if kind == "exported" and spec.exports_conditions_first:
        raise UserError(
            f"--weights {text}: an exported folder, whose UNet has its inputs in diffusers' order; give the run that "
            "it was made of"
        )
    told = spec.keeps_cross_attention
    folder = place.unets[kind]
    try:
        for name in ("config.json", WEIGHTS_NAME):
            require_file(folder / name, inside=place.folder)
        digest = sha256_of(folder / WEIGHTS_NAME)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({reason_of(error)}); copy it again") from error
    name = str(place.config.parent) if place.step is not None else place.name
    return Starting(Start(name, place.step, kind, digest), folder, source, told)


def _found(text: str, output_dir: str) -> tuple[ModelPlace, str] | None:
    """Place and whose weights: the averaged ones where there are any."""
    folder = Path(text).expanduser()
    if text == "random" or weights_folder(text) != folder:
        return None
    if folder.is_dir() and folder.name in _KINDS and step_of(folder.parent) is not None:
        return find_model(folder.parent, output_dir), _KINDS[folder.name]
    if folder.is_dir() and not _is_of_run(folder) and not (folder / CONFIG_NAME).is_file():
        return None
    try:
        place = find_model(text, output_dir)
    except UserError as error:
        first, slash, rest = text.partition("/")
        if slash and "/" not in rest and first not in (".", "~", "") and not Path(first).exists():
            return None  # a hub id
        raise UserError(f"--weights {error}; or a folder in diffusers' layout, or a hub id (owner/name)") from None
    return place, next(kind for kind in ("ema", "raw", "exported") if kind in place.unets)


def _is_of_run(folder: Path) -> bool:
    return step_of(folder) is not None or (folder / "checkpoints").is_dir() or (folder / "config.yaml").is_file()


def _fitting(given: str, config: Config, source: Config) -> ModelSpec:
    """What both models are. Raises UserError where the weights would mean something else in the new one."""
    if source.task != config.task:
        raise UserError(
            f"{given}: a run of the task {source.task}, and this is {config.task}: its inputs mean something else. "
            f"Give a run of {config.task}"
        )
    before, after = open_task(source), open_task(config)
    own, other = after.spec, before.spec
    if other.inputs != own.inputs or other.in_channels != own.in_channels:
        raise UserError(
            f"{given}: its UNet takes {other.in_channels} channels ({', '.join(other.inputs)}), and this one "
            f"{own.in_channels} ({', '.join(own.inputs)}). Give a run with the same inputs"
        )
    if source.model.architecture != config.model.architecture:
        raise UserError(
            f"{given}: of the architecture {source.model.architecture}, and this is {config.model.architecture}; add "
            f"--set model.architecture={source.model.architecture}"
        )
    if config.model.vae not in ("same", source.model.vae, source.model.vae_source):
        raise UserError(
            f"{given}: it was trained on latents of the VAE {source.model.vae_source}, and this has "
            f"{config.model.vae_source}; add --set model.vae={source.model.vae_source}"
        )
    if (before.objective.prediction, before.objective.timestep) != (
        after.objective.prediction,
        after.objective.timestep,
    ):
        raise UserError(
            f"{given}: it predicts {before.objective.prediction} at timestep {before.objective.timestep}, and this "
            f"{after.objective.prediction} at {after.objective.timestep}; give both the same "
            "task_options.model.objective"
        )
    return own
