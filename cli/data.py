"""Data sets, and the autoencoder that is trained on one."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json
from shadowlab.settings import Request

if TYPE_CHECKING:
    from shadowlab.examination import CheckReport

TaskName = Annotated[str, typer.Option("--task", metavar="NAME", help="shadow, albedo or insertion.")]
CHECK_IS_KEPT = "what is examined is kept; go on with the same command and --resume"


def render(
    out: Annotated[Path, typer.Option(help="New folder for the data set.")],
    objects: Annotated[int | None, typer.Option(min=1, help="Objects; all meshes, or 20 procedural ones.")] = None,
    lights: Annotated[int, typer.Option(min=1, help="Lights per object.")] = 4,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 128,
    spp: Annotated[int, typer.Option(min=1, help="Samples per pixel; 256 leaves about 2 grey levels of noise.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    meshes: Annotated[Path | None, typer.Option(help="Folder of OBJ, PLY or GLB files.")] = None,
    task: Annotated[
        str, typer.Option("--task", metavar="NAME", help="shadow, albedo, insertion or editing.")
    ] = "shadow",
    textures: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs: on surfaces, of --task albedo; to be edited, of --task editing."),
    ] = None,
    renders: Annotated[
        Path | None, typer.Option(help="Of --task insertion: folder of rendered shadows, in place of those that ship.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Render training samples with Mitsuba 3 (pip install mitsuba trimesh).

    Example:
    shadowlab data render --meshes DIR --out my-renders --lights 4
    shadowlab data render --objects 1000 --out my-renders --processes 8
    shadowlab data render --task albedo --objects 200 --lights 2 --spp 64 --out my-pairs
    shadowlab data render --task insertion --objects 32 --lights 8 --size 64 --out my-insertions
    """
    from shadowlab.console import Reporter
    from shadowlab.distributed import workers
    from shadowlab.standard_streams import outlived
    from shadowlab.tasks import render_samples

    outlived()
    with workers() as processes:
        reporter = Reporter(as_json=as_json, active=processes.is_main)
        count = render_samples(
            task,
            out,
            processes,
            reporter,
            num_objects=objects if meshes is not None else objects or 20,
            lights_per_object=lights,
            image_size=size,
            samples_per_pixel=spp,
            seed=seed,
            meshes=meshes,
            textures=textures,
            renders=renders,
        )
    of_task = "" if task == "shadow" else f" --set task={task}"
    reporter.say(f"{count} samples in {out}; examine them with: shadowlab data check {out}{of_task}")
    reporter.result({"samples": count, "out": str(out)})


def check(
    request: Request,
    path: Annotated[str, typer.Argument(help="A folder, a tar, or `embedded`.")],
    image_size: Annotated[int | None, typer.Option(min=8, help="Also check that samples resize to this.")] = None,
    quick: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Examine N samples, drawn by --seed, in place of all.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a check of this set was stopped.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep what is found so far here; several machines must share it.",
            show_default="in ~/.cache/shadowlab/checks",
        ),
    ] = None,
) -> None:
    """Examine every sample, and all of them together, and list all that is wrong.

    Exit code 2: training would refuse the data; 1: it would learn something wrong from them.

    Example:
    shadowlab data check my-renders --image-size 128
    shadowlab data check my-renders --processes 8
    shadowlab data check my-renders --quick 500
    """
    from shadowlab.console import Reporter
    from shadowlab.distributed import workers
    from shadowlab.examination import Selection, check_data, keep_result, listing

    config = request.config()
    selection = Selection(quick, config.seed)
    with workers() as processes:
        reporter = Reporter(as_json=request.as_json, active=processes.is_main, quiet=request.quiet)
        report = check_data(
            config, path, processes, reporter, image_size=image_size, selection=selection, resume=resume, state=state
        )
    if report is None:  # the first process has it
        return
    if config.data.augment.is_on:
        reporter.say(f"examined as the files have it; train augments: {config.data.augment.text}")
    for line in listing(report.notices) + report.warnings:
        reporter.warn(line)
    for line in listing([str(problem) for problem in report.problems]):
        reporter.say(line, style="red")
    for line in report.errors:
        reporter.say(f"wrong: {line}", style="red")
    for line in report.said:
        reporter.say(line, style="dim")
    if report.picture:
        reporter.say(f"picture (mask, shadow, expected under its own light, under the other's): {report.picture}")
    wrong = f", {_count(len(report.errors), 'error')} of all together" if report.errors else ""
    reporter.conclude(f"{path}: {_examined(report, config.seed)}, {_count(len(report.problems), 'problem')}{wrong}")
    reporter.result({"passed": report.passed, **asdict(report)})
    keep_result(config, report)
    if not report.passed:
        raise typer.Exit(2 if report.problems else 1)


def _examined(report: "CheckReport", seed: int) -> str:
    all_of_it = f"{_count(report.num_samples, 'sample')} of {_count(report.num_objects, 'object')}"
    if report.num_examined == report.num_samples:
        return all_of_it
    return f"all names and metadata of {all_of_it}, and the pictures of {report.num_examined} drawn by seed {seed}"


def pack(
    path: Annotated[str, typer.Argument(help="A folder, a tar, or `embedded`.")],
    out: Annotated[Path, typer.Option(help="Folder of the pack.")],
    shard_mib: Annotated[float, typer.Option(min=0.1, help="Size of a tar in MiB, about.")] = 1024,
    as_json: Json = False,
) -> None:
    """Pack a data set into a few large tars, for file systems that hate a million files.

    The tars are WebDataset shards. Train on the pack as on the folder: --data PACK.

    Example:
    shadowlab data pack my-renders --out my-pack
    shadowlab data pack my-renders --out my-pack --processes 4
    """
    from shadowlab.console import Reporter
    from shadowlab.distributed import workers
    from shadowlab.packs import pack_dataset
    from shadowlab.tasks.shadow import RANGES, index_dataset

    with workers() as processes:
        reporter = Reporter(as_json=as_json, active=processes.is_main)
        with processes.together():
            index = index_dataset(path)
        for notice in index.notices:
            reporter.warn(notice)
        report = pack_dataset(index, out, processes, reporter, value_names=tuple(RANGES), shard_mib=shard_mib)
    shards = f"{_count(report.num_shards, 'shard')} ({report.mib:,.1f} MiB)"
    done = f"{report.num_packed} packed, {report.num_kept} kept"
    reporter.say(f"{_count(report.num_samples, 'sample')} in {shards} in {out}: {done}")
    reporter.say(f"train on it: --data {out}", style="bold green")
    reporter.result({"passed": True, "out": str(out), **asdict(report)})


def encode(
    request: Request,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the latents; data.latents of the configuration where not given.")
    ] = None,
) -> None:
    """Pass every picture through the VAE once; train and overfit then read the latents.

    Example:
    shadowlab data encode --data my-renders --out latents
    shadowlab data encode --data my-renders --out latents --processes 4
    """
    from shadowlab.errors import UserError
    from shadowlab.latents import encode_dataset
    from shadowlab.stages.run import open_processes

    config = request.config()
    folder = out or config.data.latents
    if folder is None:
        raise UserError("data encode: say where the latents go: --out DIR, or --set data.latents=DIR")
    folder = Path(folder).expanduser()
    processes, reporter = open_processes(config, request)
    processes.report_losses_to(None, go_on="the same command")
    try:
        report = encode_dataset(config, folder, processes, reporter)
    finally:
        processes.close()
    sides = ", mirrored ones among them" if config.data.augment.flip else ""
    repaired = f", {report.num_damaged} of them in place of damaged ones" if report.num_damaged else ""
    unused = f"; {_count(report.num_unused, 'file')} of other pictures or another VAE" if report.num_unused else ""
    reporter.conclude(
        f"{_count(report.num_latents, 'latent')} of {_count(report.num_samples, 'sample')} in {folder} "
        f"({report.mib:,.1f} MiB){sides}: {report.num_encoded} encoded{repaired}, {report.num_kept} kept{unused}"
    )
    reporter.say(f"train on them: --set data.latents={folder}", style="bold green")
    reporter.result({"passed": True, "out": str(folder), **asdict(report)})


def train_vae(
    data: Annotated[Path, typer.Option(help="Data set of the task.")],
    out: Annotated[Path, typer.Option(help="New folder for the autoencoder, in diffusers' layout.")],
    task: TaskName = "shadow",
    steps: Annotated[int, typer.Option(min=1)] = 800,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(min=0)] = 2e-3,
    image_size: Annotated[int, typer.Option(min=8)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Train a small AutoencoderKL (8x, 4 channels) on renders.

    Example:
    shadowlab train-vae --data my-renders --out my-vae
    shadowlab train-vae --task albedo --data my-pairs --out my-vae
    """
    from shadowlab.console import Reporter
    from shadowlab.distributed import pick_device
    from shadowlab.stages.train_vae import stock_of
    from shadowlab.stages.train_vae import train_vae as run
    from shadowlab.standard_streams import outlived

    outlived()
    reporter = Reporter(as_json=as_json)
    pick_device(device)
    with reporter.start("train-vae", steps):
        report = run(
            data=data,
            out=out,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            learning_rate=learning_rate,
            image_size=image_size,
            stock=stock_of(task),
            device=device,
            on_log=lambda numbers: reporter.advance(
                numbers["step"] + 1,
                steps,
                {k.replace("_", " "): v for k, v in numbers.items() if k not in ("step", "seconds")},
                log=True,
                line="  ".join(f"{k} {v:.5g}" for k, v in numbers.items()),
            ),
        )
    for name, value in asdict(report).items():
        reporter.say(f"{name}: {value}")
    reporter.result(asdict(report))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
