"""Three real training steps on golden samples, by the code that trains, in a folder that is gone afterwards.

The model is the topology of `tiny` with random weights, whatever the preset; precision, optimizer, seed, noise share,
gradient checkpointing, layout, EMA or none, latents or pictures, and the way in which processes share a model are the
run's own.
Rates and decays are such that each of them shows within three steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from diagnostics.records import read_records
from shadowlab.console import Reporter
from shadowlab.distributed import Processes, SingleProcess
from shadowlab.errors import InterruptedRunError
from shadowlab.inference import LoadedModel, open_model
from shadowlab.latents import encode_dataset
from shadowlab.runs import RunFolder
from shadowlab.session import Session
from shadowlab.settings import Config, DiagnosticsConfig, OptimizerConfig
from shadowlab.stages.check_forward.listening import Listener
from shadowlab.stages.check_forward.reference import Plan
from shadowlab.stages.result import StageResult
from shadowlab.tasks import RawVae, TaskReference


class Train(Protocol):
    """`run_train`: it is handed in, for `train` itself asks for this stage."""

    def __call__(self, session: Session, *, proves_checkpoints: bool) -> StageResult: ...


NAME = "golden"


@dataclass(eq=False)
class GoldenRun:
    """What a run did."""

    config: Config
    task: Any
    heard: Listener
    records: list[dict[str, Any]]
    """Of the first process; empty on others."""
    layout: str
    device: Any
    rank: int = 0
    world: int = 1
    saved: LoadedModel | None = None
    """The model of its checkpoint, as `generate` opens it; on the first process."""


def golden_config(config: Config, reference: TaskReference, path: str, folder: Path, world: int = 1) -> Config:
    """The configuration of the run on the golden samples that lie at `path`."""

    def changed(section: Any, **values: Any) -> Any:
        return section.model_copy(update=values)

    data, train = config.data, config.train
    return changed(
        config,
        output_dir=str(folder / "runs"),
        task_options=dict(reference.options),
        model=changed(config.model, architecture="tiny", weights="random", vae="embedded", compile=False),
        data=changed(
            data,
            path=path,
            latents=None if data.latents is None else str(folder / "latents"),
            image_size=reference.image_size,
            validation_fraction=0.25,
            num_workers=0,
            augment=type(data.augment)(),
        ),
        optimizer=OptimizerConfig(
            name=config.optimizer.name,
            learning_rate=2e-3,
            beta1=0.8,
            beta2=0.95,
            eps=1e-6,
            weight_decay=0.1,
            max_grad_norm=0.5,
            schedule="cosine",
            warmup_steps=2,
            fused=config.optimizer.fused,
        ),
        train=changed(
            train,
            max_steps=3,
            batch_size=2,
            gradient_accumulation_steps=2,
            ema_decay=None if train.ema_decay is None else 0.2,
            trainable=None,
            validate_every=1000,
            log_every=1000,
        ),
        validation=changed(config.validation, num_samples=2, timesteps=(0.5,), num_noises=2),
        checkpoint=changed(config.checkpoint, every_steps=1000),
        distributed=changed(config.distributed, processes=world),
        diagnostics=DiagnosticsConfig(statistics_every=3, histograms_every=0),
    )


def plan_of(config: Config, world: int) -> Plan:
    """What the specification needs of a configuration."""
    train, optimizer = config.train, config.optimizer
    assert optimizer.max_grad_norm is not None, "golden runs clip"
    return Plan(
        seed=config.seed,
        max_steps=train.max_steps,
        batch_size=train.batch_size,
        accumulation=train.gradient_accumulation_steps,
        world=world,
        noise_share=train.noise_share,
        validation_fraction=config.data.validation_fraction,
        learning_rate=optimizer.learning_rate,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        schedule=optimizer.schedule,
        warmup_steps=optimizer.warmup_steps,
        ema_decay=train.ema_decay,
    )


def run_golden(config: Config, processes: Processes, train: Train, quiet: Reporter) -> GoldenRun:
    """Train and listen. config: as `golden_config` gives it; the samples of the first layout are there.

    Raises:
        KeyboardInterrupt: a signal asked to stop.
        Exception: whatever the run raises.
    """
    if config.data.latents is not None:
        with processes.together():
            if processes.is_main:
                encode_dataset(config, Path(config.data.latents), SingleProcess(processes.device), quiet)
    run = None
    with processes.together():
        if processes.is_main:
            run = RunFolder.create(config, NAME)
    run = run or RunFolder.reopen(config, NAME)
    session = Session.open(config, run, processes, quiet)
    heard = Listener(session.task)
    try:
        with heard.listening():
            train(session, proves_checkpoints=False)  # `train` does, in the run's own shapes
    except InterruptedRunError:
        raise KeyboardInterrupt from None
    records: list[dict[str, Any]] = []
    saved = None
    if processes.is_main:
        records = [dict(record) for record in read_records(run.metrics)]
        saved = open_model(run.path, device=processes.device)
    assert session.task.reference is not None, "golden samples are its"
    layout = session.task.reference.layouts[0]
    done = GoldenRun(config, session.task, heard, records, layout, processes.device, processes.rank, processes.count)
    done.saved = saved
    return done


def raw_vae(task: Any) -> RawVae:
    """The task's autoencoder without what the harness puts around it."""
    model = task.vae.autoencoder
    return RawVae(
        lambda pictures: model.encode(pictures.to(task.vae.device)).latent_dist.mode(),
        lambda latents: model.decode(latents.to(task.vae.device)).sample,
        float(model.config.scaling_factor),
        float(model.config.shift_factor or 0.0),
    )
