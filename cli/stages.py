"""The stages: check-forward, check-precision, overfit, train."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.request import Request, run_stage, start

if TYPE_CHECKING:
    from shadowlab.runs import RunFolder
    from shadowlab.settings import Config


def check_forward(
    request: Request,
    sample: Annotated[
        str | None, typer.Option(help="Id of a sample of the data set; its light is in metadata.json.")
    ] = None,
    object_image: Annotated[
        Path | None, typer.Option("--object", help="Your own picture of an object, PNG or JPEG; needs the four below.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Its mask: white = object.")] = None,
    theta: Annotated[
        float | None, typer.Option(help="With --object: polar angle of the light, 0 to 45 degrees.")
    ] = None,
    phi: Annotated[float | None, typer.Option(help="With --object: azimuth of the light, 0 to 360 degrees.")] = None,
    size: Annotated[float | None, typer.Option(help="With --object: side of the square light, 2 to 8.")] = None,
) -> None:
    """Prove that the model as configured is the model that was meant.

    Example:
    shadowlab check-forward
    shadowlab check-forward --object photo.jpg --mask mask.png --theta 30 --phi 120 --size 4
    """
    config = request.config()

    from shadowlab.stages.check_forward import run_check_forward
    from shadowlab.tasks import open_task

    light = {"theta": theta, "phi": phi, "size": size}
    own = open_task(config).own_input({"object": object_image, "mask": mask, **light, "sample": sample})
    run_stage("check-forward", request, config, lambda session: run_check_forward(session, sample=sample, own=own))


def check_precision(
    request: Request,
    layers: Annotated[int, typer.Option(min=0, help="Layers to print of each policy, the hardest first.")] = 8,
) -> None:
    """Run one step in every precision and in float64: which of them hold, and which layers decide it.

    Example: shadowlab check-precision --layers 20
    """
    config = request.config()

    from shadowlab.stages.check_precision import run_check_precision

    run_stage("check-precision", request, config, lambda session: run_check_precision(session, num_layers=layers))


def overfit(request: Request) -> None:
    """Memorise a handful of samples, judged on a fixed grid and on generated pictures.

    Example: shadowlab overfit --samples 16
    """
    config = request.config()

    from shadowlab.stages.overfit import run_overfit

    run_stage("overfit", request, config, run_overfit)


def train(
    request: Request,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue --run (a name, or latest), or the preset's newest run.")
    ] = False,
    skip_stages: Annotated[bool, typer.Option("--skip-stages", help="Do not ask for passed stages.")] = False,
) -> None:
    """Train, after check-forward and overfit have passed for this model.

    Example:
    shadowlab train --precision fp32 --max-steps 200
    shadowlab train --precision fp32 --max-steps 400 --resume
    shadowlab train --preset sdxl-4xh100 --data DIR
    """
    config = request.config()

    from shadowlab.distributed import crowded, launched_processes, require_gpus
    from shadowlab.runs import RunFolder, default_name, resumed_config, run_to_resume

    run = None
    if resume:
        run = RunFolder.reopen(config, run_to_resume(config, request.run, request.label))
        config = resumed_config(
            run,
            source=None if request.is_default else request.label,
            file=request.config_file,
            options=request.given,
            assignments=request.assignments,
            num_processes=launched_processes(),
        )
    starts_processes = launched_processes() is None and config.distributed.processes > 1
    place = config.data.path
    if not (starts_processes and (os.path.exists(place) or place == type(config.data)().path)):
        from shadowlab.tasks import open_task  # takes seconds, which a launcher need not spend

        open_task(config).find_data()  # a wrong path must not wait for processes or stages
    if config.data.latents is not None:
        from shadowlab.latents import require_index

        require_index(config)
    if not starts_processes:
        _train(request, config, run, skip_stages=skip_stages)
        return
    require_gpus(config.device, config.distributed.processes)
    for warning in crowded(config.device, config.distributed.processes):
        typer.echo(f"warning: {warning}", err=True)
    name = run.path.name if run is not None else request.run or default_name(request.label, "train")
    _train_in_processes(request, config, name, resume=resume, skip_stages=skip_stages)


def _train(request: Request, config: "Config", run: "RunFolder | None", *, skip_stages: bool) -> None:
    """Train in this process, alone or as one of several. run: that is resumed, or None for a new one."""
    from shadowlab.errors import InterruptedRunError
    from shadowlab.runs import RunFolder, default_name, with_processes
    from shadowlab.session import Session
    from shadowlab.stages.run import finish_stage, prove_required_stages
    from shadowlab.stages.train import run_train
    from shadowlab.training import ending_at_once

    resume, lock = run is not None, None
    processes, reporter = start(config, request, resumed=run)
    config = with_processes(config, processes.count)
    try:
        with ending_at_once():  # until the loop, which finishes its step
            if run is None:
                name = request.run or processes.share(default_name(request.label, "train"))
                with processes.together():
                    if processes.is_main:
                        RunFolder.create(config, name, source=request.label)
                run = RunFolder.reopen(config, name)
            with processes.together():
                if processes.is_main:
                    lock = run.claim()
                    reporter.log_to(run.log)
            processes.tell(run.log, go_on=_resuming(config, run.path.name, skip_stages))
            session = Session.open(config, run, processes, reporter)
            prove_required_stages(session, skip=skip_stages)
            finish_stage("train", session, lambda session: run_train(session, resume=resume), write=processes.is_main)
            reporter.say(f"look at it: shadowlab tensorboard {run.path}")
    except (KeyboardInterrupt, InterruptedRunError) as stop:
        if run is None:
            raise
        stopped = str(stop) or "interrupted"
        reporter.note(stopped)
        raise InterruptedRunError(
            f"{stopped}; go on with: {_resuming(config, run.path.name, skip_stages)}",
            saved=getattr(stop, "saved", False),
        ) from None
    finally:
        if lock is not None:
            lock.close()
        reporter.close()
        processes.close()


def _train_in_processes(request: Request, config: "Config", name: str, *, resume: bool, skip_stages: bool) -> None:
    """Start the processes, each with the same words as this command was given."""
    from shadowlab.distributed import launch_processes
    from shadowlab.errors import InterruptedRunError, LostProcessError

    words = ["train", *request.words(), "--run", name]
    words += ["--resume"] if resume else []
    words += ["--skip-stages"] if skip_stages else []
    go_on = _resuming(config, name, skip_stages)
    try:
        code = launch_processes(config.distributed.processes, "cli.main", words)
    except LostProcessError as lost:
        error = LostProcessError(f"{lost}; go on with: {go_on}")
        error.printed = lost.printed
        raise error from None
    except InterruptedRunError as stop:
        begun = (Path(config.output_dir) / name / "config.yaml").exists()
        raise InterruptedRunError(f"{stop}; " + (f"go on with: {go_on}" if begun else "start it again")) from None
    raise typer.Exit(code)


def _resuming(config: "Config", name: str, skip_stages: bool) -> str:
    """The command that goes on with a run; config.yaml in its folder holds all other options."""
    words = ["shadowlab", "train", "--run", name, "--resume"]
    if config.output_dir != type(config)().output_dir:
        words += ["--set", f"output_dir={config.output_dir}"]
    return shlex.join([*words, *(["--skip-stages"] if skip_stages else [])])


def plan(
    request: Request,
    strategy: Annotated[
        Literal["single", "ddp", "fsdp2"] | None,
        typer.Option(metavar="NAME", help="single, ddp or fsdp2 alone.", show_default="all of them"),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="GPUs of ddp and fsdp2.", show_default="the preset's, at least 4")
    ] = None,
    gpu_memory: Annotated[float, typer.Option(min=1, help="Memory of a GPU in GB of 10^9 bytes.")] = 80,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run two rounds in one process here and print their true peak.")
    ] = False,
) -> None:
    """Say what training needs in memory on each GPU, item by item, without allocating it. Exit 1 where nothing fits.

    For a GPU, unless --device cpu is given; --measure takes the device that is here.

    Example: shadowlab plan --preset sdxl-4xh100
    """
    config = request.config()

    from shadowlab.errors import UserError

    if request.run is not None:
        raise UserError("--run: plan writes no run folder; leave it out")

    from shadowlab.console import Reporter
    from shadowlab.planning import run_plan

    fits = run_plan(
        config,
        Reporter(as_json=request.as_json),
        strategies=None if strategy is None else (strategy,),
        processes=processes or max(4, config.distributed.processes),
        gpu_memory_gb=gpu_memory,
        measure=measure,
    )
    if not fits:
        raise typer.Exit(1)
