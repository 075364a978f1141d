"""check-forward: proof, before any training, that the model as configured is the model that was meant.

Legend: B batch, H W pixels, h w latents (H/8). Every check says what it expected, what it saw and what to do.
Encoding and the forward pass run at the configured size. Gradients and light response are measured on latents of at
most 16 x 16 and the VAE decodes the central 64 x 64, which is what lets full SDXL be checked on a CPU in 12 GiB.
"""

from dataclasses import asdict

import torch

from shadowlab.console import Reporter
from shadowlab.distributed import Processes, SingleProcess
from shadowlab.errors import UserError
from shadowlab.models import LATENT_CHANNELS, POLICIES, load_vae
from shadowlab.runs import RunFolder
from shadowlab.seeding import permutation
from shadowlab.settings import Config
from shadowlab.stages.check_forward import input_checks, model_checks, structure_checks
from shadowlab.stages.check_forward.preflight import preflight
from shadowlab.stages.check_forward.report import Check, PathTable, checks_table
from shadowlab.stages.result import StageResult
from shadowlab.tasks import RANGES, Batch, Picture, ShadowTask, collate, open_dataset, save_picture
from shadowlab.training import build_trainee, build_unet

_MANY_PIXELS = 512 * 512


def run_check_forward(
    config: Config,
    run: RunFolder,
    processes: Processes,
    reporter: Reporter,
    *,
    sample: str | None = None,
    picture: Picture | None = None,
) -> StageResult:
    """Build the model as configured and check it on a sample of the data set, or on the user's `picture`.

    Raises:
        UserError: data or weights cannot be read, or there is no sample of that id.
    """
    processes.require_single("check-forward")
    POLICIES[config.precision].apply_to_backend(processes.device)  # before the VAE computes anything
    batch, about = _batch(config, sample, picture, reporter)
    path = PathTable()
    _add_inputs(path, batch)
    save_picture(
        torch.cat([(batch.object_image[0] + 1) / 2, batch.mask[0].expand(3, -1, -1)], dim=2), run.samples / "input.png"
    )

    # The VAE comes first and its activations are gone before the UNet is built: the peaks do not add up.
    task = ShadowTask(load_vae(config.model.vae_source, seed=config.seed).to(processes.device))
    checks: list[Check] = [input_checks.background_is_constant(batch), input_checks.vae_is_frozen(task)]
    if not checks[-1].passed:  # nothing that it encodes would mean anything
        return _conclude(about, checks, path, reporter)
    encoded = task.encode(batch)
    object_latent, mask = encoded.concatenated[:, :LATENT_CHANNELS], encoded.concatenated[:, LATENT_CHANNELS:]
    path.add("condition", "light embedding", encoded.embedding, "(B, 768)", model_checks.EMBEDDING_LIMITS)
    path.add("condition", "object latent", object_latent, "(B, 4, h, w)", model_checks.LATENT_LIMITS)
    path.add("condition", "latent mask", mask, "(B, 1, h, w)", (0, 1))
    path.add("VAE", "shadow latent (data)", encoded.data, "(B, 4, h, w)", model_checks.LATENT_LIMITS)
    checks += input_checks.vae(task, batch, encoded, path, trained=config.model.vae_source != "random")
    checks += input_checks.conditions(task, batch, encoded)
    checks.append(model_checks.flow_reaches_data(encoded, config.seed))

    reporter.say(f"check-forward on {about}: building {config.model.architecture} from {config.model.weights} ...")
    unet = build_unet(config, task, processes.device)
    checks += structure_checks.parameters(config, unet, task)
    checks.append(structure_checks.cross_attention_is_gone(unet))
    checks.append(structure_checks.new_channels_are_ignored(unet, config))
    # The training step's own loss is judged; a trainee without EMA or optimizer state costs nothing.
    alone = SingleProcess(processes.device)
    trainee = build_trainee(config.eager(), unet, alone, config.optimizer, config.train.max_steps, ema_decay=None)
    trainee.watch.detach()
    checks += preflight(trainee, config)
    checks += model_checks.forward(trainee, encoded, path)
    checks += model_checks.gradients(trainee, encoded)
    checks += model_checks.light_response(trainee, encoded, batch)
    checks.append(path.check())
    reporter.say("what training needs in memory: shadowlab plan, with the same options", style="dim")
    return _conclude(about, checks, path, reporter)


def _conclude(about: str, checks: list[Check], path: PathTable, reporter: Reporter) -> StageResult:
    reporter.table(path.table())
    reporter.table(checks_table(checks))
    failed = [check for check in checks if not check.passed and not check.tolerated]
    for check in checks:
        if check.tolerated and not check.passed:
            reporter.warn(f"{check.seen}; {check.mend}")
    message = "; ".join(f"{check.name}: expected {check.expected}, saw {check.seen}; {check.mend}" for check in failed)
    if not failed:
        reporter.say(f"check-forward passed: {len(checks)} checks", style="green")
    summary = {"sample": about, "path": path.rows_as_dicts(), "checks": [asdict(check) for check in checks]}
    return StageResult("check-forward", not failed, summary, message)


def _add_inputs(path: PathTable, batch: Batch) -> None:
    path.add("input", "object image", batch.object_image, "(B, 3, H, W)", (-1, 1))
    path.add("input", "mask", batch.mask, "(B, 1, H, W)", (0, 1))
    path.add("input", "shadow map", batch.shadow, "(B, 1, H, W)", (0, 1))
    for column, (name, limits) in enumerate(RANGES.items()):
        path.add("input", f"light {name}", batch.light[:, column], "(B)", limits)


def _batch(config: Config, sample: str | None, picture: Picture | None, reporter: Reporter) -> tuple[Batch, str]:
    """One or two samples, and words for them."""
    size = config.data.image_size
    if picture is not None:
        reporter.say("the picture has no shadow map: an empty one stands in for the target", style="dim")
        batch = Batch(
            ids=[picture.id],
            object_image=picture.object_image[None],
            mask=picture.mask[None],
            shadow=torch.zeros(1, 1, size, size),
            light=picture.light[None],
        )
        return batch, picture.id
    dataset = open_dataset(config.data.path, size)
    for notice in dataset.notices:
        reporter.warn(notice)
    if sample is not None:
        if sample not in dataset.ids:
            raise UserError(
                f"--sample {sample}: {config.data.path} has no such id; its first are {', '.join(dataset.ids[:3])}"
            )
        chosen = [dataset.ids.index(sample)]
    else:
        count = 1 if size * size > _MANY_PIXELS else min(2, len(dataset))
        chosen = permutation(len(dataset), config.seed, "check-samples")[:count].tolist()
    batch = collate([dataset[i] for i in chosen])
    return batch, ", ".join(batch.ids)
