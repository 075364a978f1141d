"""The stages: check-forward, check-precision, overfit, train."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shadowlab.settings import Request


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
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print every check and every tensor; log.txt has them in any case.")
    ] = False,
) -> None:
    """Prove that the model as configured is the model that was meant.

    Example:
    shadowlab check-forward
    shadowlab check-forward --object photo.jpg --mask mask.png --theta 30 --phi 120 --size 4
    """
    config = request.config()

    from shadowlab.stages.check_forward import run_check_forward
    from shadowlab.stages.run import run_stage
    from shadowlab.stages.train import run_train
    from shadowlab.tasks import open_task

    light = {"theta": theta, "phi": phi, "size": size}
    own = open_task(config).own_input({"object": object_image, "mask": mask, **light, "sample": sample})
    run_stage(
        "check-forward",
        request,
        lambda session: run_check_forward(session, sample=sample, own=own, train=run_train, verbose=verbose),
    )


def check_precision(
    request: Request,
    layers: Annotated[int, typer.Option(min=0, help="Layers to print of each policy, the hardest first.")] = 8,
) -> None:
    """Run one step in every precision and in float64: which of them hold, and which layers decide it.

    Example: shadowlab check-precision --layers 20
    """
    from shadowlab.stages.check_precision import run_check_precision
    from shadowlab.stages.run import run_stage

    run_stage("check-precision", request, lambda session: run_check_precision(session, num_layers=layers))


def overfit(request: Request) -> None:
    """Memorise a handful of samples, judged on a fixed grid and on generated pictures.

    Example: shadowlab overfit --samples 16
    """
    from shadowlab.stages.overfit import run_overfit
    from shadowlab.stages.run import run_stage

    run_stage("overfit", request, run_overfit)


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
    from shadowlab.stages.train import start_training

    code = start_training(request, resume=resume, skip_stages=skip_stages, module="cli.main")
    if code:
        raise typer.Exit(code)


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
