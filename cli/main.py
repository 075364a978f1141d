"""The `shadowlab` command: parse, call one function, print, exit code. No logic.

torch is imported inside the commands, so that --help answers at once.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cli import commands
from cli.errors import reports_errors, run_reporting_usage

# Read by torch at its first allocation: large tensors on huge pages. On a CPU, page faults are a quarter of the time
# that SDXL takes at 1024 x 1024.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class _Command(TyperCommand):
    """A command whose flags are shown without a type: `--json <bool>` looks as if it took a value."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        return _flags_without_type(super().get_params(ctx))


class _Group(TyperGroup):
    """The same for a group of commands."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        return _flags_without_type(super().get_params(ctx))


def _flags_without_type(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="shadowlab",
    cls=_Group,
    help="Debugging-first training of the SDXL shadow generator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Make and examine data sets.", cls=_Group, no_args_is_help=True)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(help="Measure the diagnostics: right verdicts, and what watching costs.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

_PRESETS = "the preset's"  # the default of an option that only overrides
Preset = Annotated[str | None, typer.Option(help="Preset: tiny (default), sdxl, sdxl-4xh100.", show_default=False)]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file, or a preset's name.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be given again.")]
Run = Annotated[str | None, typer.Option(help="Name of the run folder below output_dir.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all randomness.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; text goes to stderr.")]
Precision = Annotated[str | None, typer.Option(help="fp32, tf32, bf16, fp16 or fp16-pure.")]
Unsafe = Annotated[bool, typer.Option("--allow-unsafe", help="Permit fp16-pure.")]
Data = Annotated[str | None, typer.Option(help="Data set: a folder, a tar, or `embedded`.")]
Weights = Annotated[str | None, typer.Option(help="`random`, a folder in diffusers' layout, or a hub id.")]


@app.command("check-forward", cls=_Command)
@reports_errors
def check_forward(
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    run: Run = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    allow_unsafe: Unsafe = False,
    data: Data = None,
    weights: Weights = None,
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
    as_json: Json = False,
) -> None:
    """Prove that the model as configured is the model that was meant."""
    options = commands.options(
        seed=seed, device=device, precision=precision, allow_unsafe=allow_unsafe, data=data, weights=weights
    )
    request = commands.Request(preset, config, options, assignments or [], run, as_json)
    picture = commands.PictureRequest(object_image, mask, theta, phi, size)
    commands.check_forward(request, sample=sample, picture=picture)


@app.command("check-precision", cls=_Command)
@reports_errors
def check_precision(
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    run: Run = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    allow_unsafe: Unsafe = False,
    data: Data = None,
    weights: Weights = None,
    layers: Annotated[int, typer.Option(min=0, help="Layers to print of each policy, the hardest first.")] = 8,
    as_json: Json = False,
) -> None:
    """Run one step in every precision beside float64: which of them hold, and which layers decide it."""
    options = commands.options(
        seed=seed, device=device, precision=precision, allow_unsafe=allow_unsafe, data=data, weights=weights
    )
    request = commands.Request(preset, config, options, assignments or [], run, as_json)
    commands.check_precision(request, num_layers=layers)


@app.command(cls=_Command)
@reports_errors
def overfit(
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    run: Run = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    allow_unsafe: Unsafe = False,
    data: Data = None,
    weights: Weights = None,
    samples: Annotated[int | None, typer.Option(help="Samples to memorise.", show_default=_PRESETS)] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.", show_default=_PRESETS)] = None,
    as_json: Json = False,
) -> None:
    """Memorise a handful of samples, judged on a fixed grid and on generated shadows."""
    options = commands.options(
        seed=seed, device=device, precision=precision, allow_unsafe=allow_unsafe, data=data, weights=weights
    )
    options |= {"overfit.num_samples": samples, "overfit.max_steps": max_steps}
    commands.overfit(commands.Request(preset, config, options, assignments or [], run, as_json))


@app.command(cls=_Command)
@reports_errors
def train(
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    run: Run = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    allow_unsafe: Unsafe = False,
    data: Data = None,
    weights: Weights = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default=_PRESETS)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue --run, or the preset's newest run.")] = False,
    skip_stages: Annotated[bool, typer.Option("--skip-stages", help="Do not ask for passed stages.")] = False,
    as_json: Json = False,
) -> None:
    """Train, after check-forward and overfit have passed for this model."""
    options = commands.options(
        seed=seed, device=device, precision=precision, allow_unsafe=allow_unsafe, data=data, weights=weights
    )
    options |= {"train.max_steps": max_steps}
    request = commands.Request(preset, config, options, assignments or [], run, as_json)
    commands.train(request, resume=resume, skip_stages=skip_stages)


@app.command(cls=_Command)
@reports_errors
def why(
    path: Annotated[str, typer.Argument(help="A run folder or its name (newest incident), or an incident folder.")],
    device: Device = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this counterfactual alone; may be given again: again, float32, bfloat16, eps, clip, scale, "
            "attention, samples, weights, repair, operator."
        ),
    ] = None,
    no_counterfactuals: Annotated[bool, typer.Option("--no-counterfactuals", help="Print the verdict alone.")] = False,
    as_json: Json = False,
) -> None:
    """Say why a step met NaN or Inf, and what would have helped: the step is repeated with one thing changed."""
    commands.why(path, device=device, only=only or [], counterfactuals=not no_counterfactuals, as_json=as_json)


@app.command(cls=_Command)
@reports_errors
def drill(
    name: Annotated[str | None, typer.Argument(help="The fault to put in; without it they are listed.")] = None,
    run_all: Annotated[bool, typer.Option("--all", help="Run every one.")] = False,
    as_json: Json = False,
) -> None:
    """Put a known fault into the tiny shadow model and see what the verdict looks like."""
    commands.drill(name, run_all=run_all, as_json=as_json)


@app.command("train-vae", cls=_Command)
@reports_errors
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
    """Train a small AutoencoderKL (8x, 4 channels) on renders."""
    commands.train_vae(
        data=data,
        out=out,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        image_size=image_size,
        seed=seed,
        device=device,
        as_json=as_json,
    )


@data_app.command("render", cls=_Command)
@reports_errors
def data_render(
    out: Annotated[Path, typer.Option(help="New folder for the data set.")],
    objects: Annotated[int | None, typer.Option(min=1, help="Objects; all meshes, or 20 procedural ones.")] = None,
    lights: Annotated[int, typer.Option(min=1, help="Lights per object.")] = 4,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 128,
    spp: Annotated[int, typer.Option(min=1, help="Samples per pixel; 256 leaves about 2 grey levels of noise.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    meshes: Annotated[Path | None, typer.Option(help="Folder of OBJ, PLY or GLB files.")] = None,
    as_json: Json = False,
) -> None:
    """Render training samples with Mitsuba 3 (pip install mitsuba trimesh)."""
    commands.data_render(
        out=out, objects=objects, lights=lights, size=size, spp=spp, seed=seed, meshes=meshes, as_json=as_json
    )


@data_app.command("check", cls=_Command)
@reports_errors
def data_check(
    path: Annotated[str, typer.Argument(help="A folder, a tar, or `embedded`.")],
    image_size: Annotated[int | None, typer.Option(min=8, help="Also check that samples resize to this.")] = None,
    as_json: Json = False,
) -> None:
    """Examine every sample and list all that is wrong."""
    commands.data_check(path, image_size=image_size, as_json=as_json)


@bench_app.command("faults", cls=_Command)
@reports_errors
def bench_faults(
    peers: Annotated[bool, typer.Option("--peers", help="Beside them the tools that users pick today.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Name of a case; may be given again.")] = None,
    as_json: Json = False,
) -> None:
    """Score `explain` on the fault corpus of a checkout: every field of every verdict, and false alarms."""
    commands.bench_faults(peers=peers, only=only, as_json=as_json)


@bench_app.command("overhead", cls=_Command)
@reports_errors
def bench_overhead(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the figures are medians of ratios.")] = 11,
    trips: Annotated[int, typer.Option(min=0, help="Faults to time from trip to verdict, of each kind.")] = 3,
    parameters: Annotated[float, typer.Option(min=1e4, help="Size of the SDXL-shaped UNet.")] = 80e6,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure what watching costs, against a bare step and the tools that users pick today."""
    commands.bench_overhead(rounds=rounds, trips=trips, parameters=parameters, device=device, as_json=as_json)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from shadowlab import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    run_reporting_usage(app)


if __name__ == "__main__":
    main()
