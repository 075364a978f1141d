"""What each command calls. Heavy imports happen here, after the arguments are parsed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from shadowlab.config import Config
    from shadowlab.data.sample import Picture
    from shadowlab.reporter import Reporter
    from shadowlab.run_folder import RunFolder
    from shadowlab.training.processes import Processes


@dataclass(frozen=True)
class Request:
    """The options that the three stages share. `options`: dotted key to value or None."""

    preset: str | None
    config: str | None
    options: dict[str, Any]
    assignments: list[str]
    run: str | None
    as_json: bool

    @property
    def label(self) -> str:
        """Preset or file name, for the run's name."""
        return self.preset or (Path(self.config).stem if self.config else "tiny")

    @property
    def is_default(self) -> bool:
        """Whether neither preset nor file was named."""
        return self.preset is None and self.config is None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {key: value for key, value in self.options.items() if value is not None}


@dataclass(frozen=True)
class PictureRequest:
    """The user's own picture and light: all five or none."""

    object_image: Path | None
    mask: Path | None
    theta: float | None
    phi: float | None
    size: float | None


def options(
    *,
    seed: int | None,
    device: str | None,
    precision: str | None,
    allow_unsafe: bool,
    data: str | None,
    weights: str | None,
) -> dict[str, Any]:
    """Dotted configuration keys of the dedicated options; None where not given."""
    return {
        "seed": seed,
        "device": device,
        "precision": precision,
        "allow_unsafe": allow_unsafe or None,
        "data.path": data,
        "model.weights": weights,
    }


def check_forward(request: Request, *, sample: str | None, picture: PictureRequest) -> None:
    from shadowlab.stages.check_forward import run_check_forward

    config = _config(request)
    shown = _picture(picture, config, sample)
    processes, reporter = _start(config, request)
    _stage(
        "check-forward",
        request,
        config,
        processes,
        reporter,
        lambda run: run_check_forward(config, run, processes, reporter, sample=sample, picture=shown),
    )


def overfit(request: Request) -> None:
    from shadowlab.stages.overfit import run_overfit

    config = _config(request)
    processes, reporter = _start(config, request)
    _stage(
        "overfit",
        request,
        config,
        processes,
        reporter,
        lambda run: run_overfit(config, run, processes, reporter),
    )


def train(request: Request, *, resume: bool, skip_stages: bool) -> None:
    from shadowlab.run_folder import RunFolder, default_name, latest_training_run
    from shadowlab.stages.resume import resumed_config
    from shadowlab.stages.run_stage import finish_stage, prove_required_stages
    from shadowlab.stages.train import run_train

    config = _config(request)
    run = None
    if resume:
        run = RunFolder.reopen(config, request.run or latest_training_run(config, request.label))
        config = resumed_config(
            run,
            source=None if request.is_default else request.label,
            options=request.given,
            assignments=request.assignments,
        )
    processes, reporter = _start(config, request, resumed=run)
    try:
        if run is None:
            name = request.run or processes.share(default_name(request.label, "train"))
            if processes.is_main:
                RunFolder.create(config, name, source=request.label)
            processes.wait()
            run = RunFolder.reopen(config, name)
        if processes.is_main:
            reporter.log_to(run.log)
        prove_required_stages(config, run, processes, reporter, skip=skip_stages)
        finish_stage(
            "train",
            config,
            run,
            reporter,
            lambda: run_train(config, run, processes, reporter, resume=resume),
            write=processes.is_main,
        )
        reporter.say(f"look at it: tensorboard --logdir {run.tensorboard}")
    finally:
        reporter.close()
        processes.close()


def train_vae(
    *,
    data: Path,
    out: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    image_size: int,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from shadowlab.reporter import Reporter
    from shadowlab.stages.train_vae import train_vae as run
    from shadowlab.training.processes import pick_device

    reporter = Reporter(as_json=as_json)
    pick_device(device)
    report = run(
        data=data,
        out=out,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        learning_rate=learning_rate,
        image_size=image_size,
        device=device,
        on_log=lambda numbers: reporter.say("  ".join(f"{k} {v:.5g}" for k, v in numbers.items())),
    )
    for name, value in asdict(report).items():
        reporter.say(f"{name}: {value}")
    reporter.result(asdict(report))


def data_render(
    *, out: Path, objects: int | None, lights: int, size: int, spp: int, seed: int, meshes: Path | None, as_json: bool
) -> None:
    from shadowlab.render.dataset import render_dataset
    from shadowlab.reporter import Reporter

    reporter = Reporter(as_json=as_json)
    with reporter.start("render", total=1):
        count = render_dataset(
            out,
            num_objects=objects if meshes is not None else objects or 20,
            lights_per_object=lights,
            image_size=size,
            samples_per_pixel=spp,
            seed=seed,
            meshes=meshes,
            on_progress=lambda done, total: reporter.advance(done, total, {}, log=done == total),
        )
    reporter.say(f"{count} samples in {out}; examine them with: shadowlab data check {out}")
    reporter.result({"samples": count, "out": str(out)})


def data_check(path: str, *, image_size: int | None, as_json: bool) -> None:
    from dataclasses import asdict

    from shadowlab.data.check import check_dataset
    from shadowlab.reporter import Reporter

    reporter = Reporter(as_json=as_json)
    report = check_dataset(path, image_size)
    for notice in report.notices:
        reporter.warn(notice)
    for problem in report.problems:
        reporter.say(f"{problem.sample}: {problem.message}", style="red")
    found = f"{_count(report.num_samples, 'sample')} of {_count(report.num_objects, 'object')}"
    verdict = f"{found}, {_count(len(report.problems), 'problem')}"
    reporter.say(f"{path}: {verdict}")
    reporter.result({"passed": not report.problems, **asdict(report)})
    if report.problems:
        raise typer.Exit(2)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _config(request: Request) -> "Config":
    from shadowlab.config_files import load_config

    return load_config(
        preset=request.preset, file=request.config, options=request.given, assignments=request.assignments
    )


def _start(config: "Config", request: Request, resumed: "RunFolder | None" = None) -> "tuple[Processes, Reporter]":
    """Processes and voice of a stage; the first line says what runs."""
    from shadowlab.precision import POLICIES
    from shadowlab.reporter import Reporter
    from shadowlab.training.processes import Processes

    processes = Processes(config.device)
    POLICIES[config.precision].apply_to_backend(processes.device)  # an impossible one fails before any work
    reporter = Reporter(as_json=request.as_json, active=processes.is_main)
    if resumed is not None:
        reporter.say(f"resuming {resumed.path} with its own config.yaml and the options given now")
    elif request.is_default:
        reporter.say("preset tiny: SDXL's topology in small, on a CPU, without network; the real model: --preset sdxl")
    return processes, reporter


def _stage(
    name: str, request: Request, config: "Config", processes: "Processes", reporter: "Reporter", stage: Any
) -> None:
    from shadowlab.run_folder import RunFolder, default_name
    from shadowlab.stages.run_stage import finish_stage

    try:
        processes.require_single(name)
        if request.run is None:
            run = RunFolder.create_beside(config, default_name(request.label, name), source=request.label)
        else:
            run = RunFolder.create(config, request.run, source=request.label)
        finish_stage(name, config, run, reporter, lambda: stage(run))
    finally:
        reporter.close()
        processes.close()


def _picture(request: PictureRequest, config: "Config", sample: str | None) -> "Picture | None":
    from shadowlab.data.images import load_picture
    from shadowlab.errors import UserError

    values = (request.object_image, request.mask, request.theta, request.phi, request.size)
    if all(value is None for value in values):
        return None
    if sample is not None:
        raise UserError("--sample and your own picture (--object --mask --theta --phi --size) exclude each other")
    if request.object_image is None or request.mask is None:
        raise UserError("your own picture needs both --object FILE and --mask FILE")
    if request.theta is None or request.phi is None or request.size is None:
        raise UserError("your own picture needs its light: --theta 0..45 --phi 0..360 --size 2..8")
    return load_picture(
        request.object_image, request.mask, request.theta, request.phi, request.size, config.data.image_size
    )
