"""What each command calls. Heavy imports happen here, after arguments and configuration are found to be right."""

import shlex
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
    config = _config(request)
    _check_picture(picture, sample)

    from shadowlab.stages.check_forward import run_check_forward

    shown = _picture(picture, config)
    processes, reporter = _start(config, request)
    _stage(
        "check-forward",
        request,
        config,
        processes,
        reporter,
        lambda run: run_check_forward(config, run, processes, reporter, sample=sample, picture=shown),
    )


def check_precision(request: Request, *, num_layers: int) -> None:
    config = _config(request)

    from shadowlab.stages.check_precision import run_check_precision

    processes, reporter = _start(config, request)
    _stage(
        "check-precision",
        request,
        config,
        processes,
        reporter,
        lambda run: run_check_precision(config, run, processes, reporter, num_layers=num_layers),
    )


def overfit(request: Request) -> None:
    config = _config(request)

    from shadowlab.stages.overfit import run_overfit

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
    config = _config(request)

    from shadowlab.data.dataset import resolve_path
    from shadowlab.errors import InterruptedRunError
    from shadowlab.run_folder import RunFolder, default_name, latest_training_run
    from shadowlab.stages.resume import resumed_config
    from shadowlab.stages.run_stage import finish_stage, prove_required_stages
    from shadowlab.stages.train import run_train

    run = None
    if resume:
        run = RunFolder.reopen(config, request.run or latest_training_run(config, request.label))
        config = resumed_config(
            run,
            source=None if request.is_default else request.label,
            file=request.config,
            options=request.given,
            assignments=request.assignments,
        )
    processes, reporter = _start(config, request, resumed=run)
    try:
        resolve_path(config.data.path)  # a wrong path must not wait for the stages
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
    except (KeyboardInterrupt, InterruptedRunError) as stop:
        if run is None:
            raise
        stopped = str(stop) or "interrupted"
        reporter.note(stopped)
        raise InterruptedRunError(f"{stopped}; go on with: {_resuming(config, run, skip_stages)}") from None
    finally:
        reporter.close()
        processes.close()


def _resuming(config: "Config", run: "RunFolder", skip_stages: bool) -> str:
    """The command that goes on with `run`; config.yaml in it holds all other options."""
    words = ["shadowlab", "train", "--run", run.path.name, "--resume"]
    if config.output_dir != type(config)().output_dir:
        words += ["--set", f"output_dir={config.output_dir}"]
    return shlex.join([*words, *(["--skip-stages"] if skip_stages else [])])


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


def why(path: str, *, device: str | None, only: list[str], counterfactuals: bool, as_json: bool) -> None:
    from shadowlab.reporter import Reporter
    from shadowlab.stages.why import find_incident, run_why

    incident = find_incident(path)
    run_why(incident, Reporter(as_json=as_json), device=device, only=only, counterfactuals=counterfactuals)


def drill(name: str | None, *, run_all: bool, as_json: bool) -> None:
    from shadowlab.drill.run import find_drills, list_drills, report_drill, run_drill
    from shadowlab.errors import UserError
    from shadowlab.reporter import Reporter

    if name is not None and run_all:
        raise UserError("give a drill's name or --all, not both")
    drills = find_drills(name)
    reporter = Reporter(as_json=as_json)
    if name is None and not run_all:
        list_drills(drills, reporter)
        return
    results = []
    for one in drills:
        results.append(run_drill(one))
        report_drill(results[-1], reporter)
    passed = all(result.passed for result in results)
    reporter.result({"passed": passed, "drills": [result.to_json() for result in results]})
    if not passed:
        raise typer.Exit(1)


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

    from shadowlab.data.check import check_dataset, listing
    from shadowlab.reporter import Reporter

    reporter = Reporter(as_json=as_json)
    report = check_dataset(path, image_size)
    for line in listing(report.notices):
        reporter.warn(line)
    for line in listing([str(problem) for problem in report.problems]):
        reporter.say(line, style="red")
    found = f"{_count(report.num_samples, 'sample')} of {_count(report.num_objects, 'object')}"
    verdict = f"{found}, {_count(len(report.problems), 'problem')}"
    reporter.say(f"{path}: {verdict}")
    reporter.result({"passed": not report.problems, **asdict(report)})
    if report.problems:
        raise typer.Exit(2)


def bench_faults(*, peers: bool, only: list[str] | None, as_json: bool) -> None:
    from shadowlab.bench.faults import format_report, run_faults
    from shadowlab.reporter import Reporter

    reporter = Reporter(as_json=as_json)
    report = run_faults(only, peers=peers)
    reporter.say(format_report(report))
    reporter.result(report.to_json())
    if not report.passed:
        raise typer.Exit(1)


def bench_overhead(*, rounds: int, trips: int, parameters: float, device: str, as_json: bool) -> None:
    from shadowlab.bench.overhead import format_table, measure_overhead
    from shadowlab.reporter import Reporter
    from shadowlab.training.processes import pick_device

    reporter = Reporter(as_json=as_json)
    place = str(pick_device(device))
    report = measure_overhead(parameters, repeats=rounds, trips=trips, device=place, on_row=reporter.say)
    reporter.say(format_table(report))
    reporter.result(report.to_json())


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
    if processes.device.type == "cpu" and config.precision != "fp32":
        reporter.warn(
            f"--precision {config.precision} on a CPU is several times slower than fp32; good for its numerics alone"
        )
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


def _check_picture(request: PictureRequest, sample: str | None) -> None:
    """Raise UserError unless the options of the user's own picture are all given, or none of them."""
    from shadowlab.errors import UserError

    light = (request.theta, request.phi, request.size)
    files = (request.object_image, request.mask)
    if all(value is None for value in (*light, *files)):
        return
    if sample is not None:
        raise UserError(
            "--sample and your own picture (--object --mask --theta --phi --size) exclude each other: a sample has its "
            f"light in metadata.json; {_OTHER_LIGHT}"
        )
    if all(value is None for value in files):
        raise UserError(
            f"--theta --phi --size are the light of your own picture: add --object FILE --mask FILE; {_OTHER_LIGHT}"
        )
    if any(value is None for value in files):
        raise UserError("your own picture needs both --object FILE and --mask FILE")
    if any(value is None for value in light):
        raise UserError("your own picture needs its light: --theta 0..45 --phi 0..360 --size 2..8")


_OTHER_LIGHT = (
    "to see a sample under another light, name its files: --object DATA/objects/ID.png --mask DATA/masks/ID.png"
)


def _picture(request: PictureRequest, config: "Config") -> "Picture | None":
    from shadowlab.data.images import load_picture

    image, mask, theta, phi, size = request.object_image, request.mask, request.theta, request.phi, request.size
    if image is None or mask is None or theta is None or phi is None or size is None:
        return None
    return load_picture(image, mask, theta, phi, size, config.data.image_size)
