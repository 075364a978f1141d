"""check-forward: proof, before any training, that the model as configured is the model that was meant.

Legend: B batch, H W pixels, h w latents (H/8). Every check says what it expected, what it saw and what to do.
Encoding and the forward pass run at the configured size. Gradients and responses are measured on latents of at
most 16 x 16 and the VAE decodes the central 64 x 64, which is what lets full SDXL be checked on a CPU in 12 GiB.
"""

from dataclasses import asdict
from typing import Any

from shadowlab.checks import Check, PathTable
from shadowlab.distributed import SingleProcess
from shadowlab.drawing import save_picture
from shadowlab.errors import UserError
from shadowlab.interruption import signals
from shadowlab.models import POLICIES
from shadowlab.seeding import normal, permutation
from shadowlab.session import Session
from shadowlab.stages.check_forward import model_checks, structure_checks
from shadowlab.stages.check_forward.golden_run import Train
from shadowlab.stages.check_forward.ownership import ownership
from shadowlab.stages.check_forward.preflight import preflight
from shadowlab.stages.check_forward.report import checks_table, counts, failures, path_table
from shadowlab.stages.check_forward.step_checks import step_checks
from shadowlab.stages.result import StageResult
from shadowlab.tasks import TaskBatch, vae_is_frozen
from shadowlab.training import build_trainee, build_unet

_MANY_PIXELS = 512 * 512


def run_check_forward(
    session: Session,
    *,
    sample: str | None = None,
    own: tuple[TaskBatch, str] | None = None,
    train: Train | None = None,
    verbose: bool = False,
) -> StageResult:
    """Build the model as configured and check it on a sample of the data set, or on the user's own input.

    Args:
        sample: id of one. own: as `Task.own_input` gives it.
        train: the stage that trains, to be compared with its specification; None: for who asks about the model alone.
        verbose: print every check and every tensor; log.txt has them in any case.

    Raises:
        UserError: data or weights cannot be read, or there is no sample of that id.
    """
    config, processes, reporter, task = session.config, session.processes, session.reporter, session.task
    processes.require_single("check-forward")
    POLICIES[config.precision].apply_to_backend(processes.device)  # before the VAE computes anything
    batch, about = _batch(session, sample, own)
    path = PathTable()
    checks: list[Check] = [] if train is None else step_checks(session, train)
    checks += task.check_batch(batch, path)
    save_picture(task.input_figure(batch), session.run.samples / "input.png")

    # The VAE comes first and its activations are gone before the UNet is built: the peaks do not add up.
    task.load_vae(processes.device)
    checks.append(vae_is_frozen(task.vae))
    if not checks[-1].passed:  # nothing that it encodes would mean anything
        return _conclude(about, checks, path, session, own=own is not None, verbose=verbose)
    encoded = task.encode(batch)
    checks += task.check_encoding(batch, encoded, path)
    signals.stop_if_asked()
    noise = normal(encoded.data.shape, config.seed, "check").to(encoded.data.device)
    checks.append(task.objective.check_ends(noise, encoded.data))

    reporter.say(f"check-forward on {about}: building {config.model.architecture} from {config.model.weights} ...")
    unet = build_unet(config, task.spec, processes.device)
    checks += structure_checks.structure(config, unet, task)
    # The training step's own loss is judged; a trainee without EMA or optimizer state costs nothing.
    alone, settings = SingleProcess(processes.device), config.train
    trainee = build_trainee(
        config.eager(), unet, task.objective, alone, config.optimizer, settings.max_steps, ema_decay=None
    )
    trainee.watch.detach()
    for check in (
        lambda: preflight(trainee, config),
        lambda: ownership(trainee, settings.trainable or task.spec.trainable),
        lambda: model_checks.forward(trainee, task.spec, encoded, path),
        lambda: model_checks.gradients(trainee, task.spec, encoded),
        lambda: model_checks.responses(trainee, task, batch, encoded),
    ):
        signals.stop_if_asked()
        checks += check()
    checks.append(path.check())
    reporter.say("what training needs in memory: shadowlab plan, with the same options", style="dim")
    return _conclude(about, checks, path, session, own=own is not None, verbose=verbose)


def _conclude(
    about: str, checks: list[Check], path: PathTable, session: Session, *, own: bool, verbose: bool
) -> StageResult:
    """own: whether it was checked on the user's own input, which proves nothing for a data set."""
    reporter = session.reporter
    reporter.table(path_table(path), is_detail=not verbose)
    reporter.table(checks_table(checks), is_detail=not verbose)
    unproved = failures(checks)
    if unproved is not None and not verbose:
        reporter.table(unproved)
    failed = [check for check in checks if not check.passed and not check.tolerated]
    for check in checks:
        if check.tolerated and not check.passed:
            reporter.warn(f"{check.seen}; {check.mend}")
    message = "; ".join(f"{check.name}: expected {check.expected}, saw {check.seen}; {check.mend}" for check in failed)
    style = "red" if failed else "yellow" if unproved is not None else "green"
    where = "" if verbose else f"; each of them: --verbose, or {session.run.log}"
    reporter.say(f"check-forward: {counts(checks)}{where}", style=style)
    summary: dict[str, Any] = {"sample": about, "own_input": own, "path": path.rows_as_dicts()}
    summary["checks"] = [asdict(check) for check in checks]
    return StageResult("check-forward", not failed, summary, message)


def _batch(session: Session, sample: str | None, own: tuple[TaskBatch, str] | None) -> tuple[TaskBatch, str]:
    """One or two samples, and words for them."""
    config, task, reporter = session.config, session.task, session.reporter
    if own is not None:
        batch, remark = own
        reporter.say(remark, style="dim")
        return batch, ", ".join(batch.ids)
    dataset = task.open_data()
    for notice in dataset.notices:
        reporter.warn(notice)
    if sample is not None:
        if sample not in dataset.ids:
            raise UserError(
                f"--sample {sample}: {config.data.path} has no such id; its first are {', '.join(dataset.ids[:3])}"
            )
        chosen = [dataset.ids.index(sample)]
    else:
        count = 1 if config.data.image_size**2 > _MANY_PIXELS else min(2, len(dataset))
        chosen = permutation(len(dataset), config.seed, "check-samples")[:count].tolist()
    batch = task.collate([dataset[i] for i in chosen])
    return batch, ", ".join(batch.ids)
