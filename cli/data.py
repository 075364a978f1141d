"""Data sets, and the autoencoder that is trained on one."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json
from shadowlab.settings import Request


def render(
    out: Annotated[Path, typer.Option(help="New folder for the data set.")],
    objects: Annotated[int | None, typer.Option(min=1, help="Objects; all meshes, or 20 procedural ones.")] = None,
    lights: Annotated[int, typer.Option(min=1, help="Lights per object.")] = 4,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 128,
    spp: Annotated[int, typer.Option(min=1, help="Samples per pixel; 256 leaves about 2 grey levels of noise.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    meshes: Annotated[Path | None, typer.Option(help="Folder of OBJ, PLY or GLB files.")] = None,
    as_json: Json = False,
) -> None:
    """Render training samples with Mitsuba 3 (pip install mitsuba trimesh).

    Example: shadowlab data render --meshes DIR --out my-renders --lights 4
    """
    from shadowlab.console import Reporter
    from shadowlab.tasks.shadow import render_dataset

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


def check(
    path: Annotated[str, typer.Argument(help="A folder, a tar, or `embedded`.")],
    image_size: Annotated[int | None, typer.Option(min=8, help="Also check that samples resize to this.")] = None,
    as_json: Json = False,
) -> None:
    """Examine every sample and list all that is wrong.

    Example: shadowlab data check my-renders --image-size 128
    """
    from shadowlab.console import Reporter
    from shadowlab.tasks.shadow import check_dataset, listing

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


def encode(
    request: Request,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the latents; data.latents of the configuration where not given.")
    ] = None,
) -> None:
    """Pass every picture through the VAE once; train and overfit then read the latents.

    Example: shadowlab data encode --data my-renders --out latents
    """
    from shadowlab.errors import InterruptedRunError, UserError
    from shadowlab.latents import encode_dataset
    from shadowlab.stages.run import open_processes

    config = request.config()
    folder = out or config.data.latents
    if folder is None:
        raise UserError("data encode: say where the latents go: --out DIR, or --set data.latents=DIR")
    folder = Path(folder).expanduser()
    processes, reporter = open_processes(config, request)
    try:
        processes.require_single("data encode")
        report = encode_dataset(config, folder, processes.device, reporter)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted: what is encoded so far is kept in {folder}; go on with the same command"
        ) from None
    finally:
        processes.close()
    repaired = f", {report.num_damaged} of them in place of damaged ones" if report.num_damaged else ""
    unused = f"; {_count(report.num_unused, 'file')} of other pictures or another VAE" if report.num_unused else ""
    reporter.conclude(
        f"{_count(report.num_latents, 'latent')} of {_count(report.num_samples, 'sample')} in {folder} "
        f"({report.mib:,.1f} MiB): {report.num_encoded} encoded{repaired}, {report.num_kept} kept{unused}"
    )
    reporter.say(f"train on them: --set data.latents={folder}", style="bold green")
    reporter.result({"passed": True, "out": str(folder), **asdict(report)})


def train_vae(
    data: Annotated[Path, typer.Option(help="Folder data set with shadow maps and object images.")],
    out: Annotated[Path, typer.Option(help="New folder for the autoencoder, in diffusers' layout.")],
    steps: Annotated[int, typer.Option(min=1)] = 800,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(min=0)] = 2e-3,
    image_size: Annotated[int, typer.Option(min=8)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Train a small AutoencoderKL (8x, 4 channels) on renders.

    Example: shadowlab train-vae --data my-renders --out my-vae
    """
    from shadowlab.console import Reporter
    from shadowlab.distributed import pick_device
    from shadowlab.stages.train_vae import train_vae as run

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
