"""What a trained model makes of one's own pictures."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.options import Device, Json, Place, Weights

Object = Annotated[Path | None, typer.Option("--object", help="Picture of the object, PNG or JPEG.")]
Mask = Annotated[
    Path | None,
    typer.Option(help="Its mask, white = object; soft values are kept.", show_default="the picture's own alpha"),
]
LightName = Annotated[
    Literal["morning", "noon", "evening", "soft"] | None,
    typer.Option("--light", metavar="NAME", help="A light by name: morning, noon, evening or soft."),
]
Theta = Annotated[float | None, typer.Option(help="Polar angle, 0 (above) to 45 degrees.")]
Phi = Annotated[
    float | None, typer.Option(help="Azimuth, 0 to 360 degrees: 0 right, 90 behind the object, 180 left, 270 in front.")
]
Size = Annotated[float | None, typer.Option(help="Side of the square light, 2 (hard shadow) to 8 (soft).")]
Steps = Annotated[int, typer.Option(help="Calls of the model for a shadow.")]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Samples = Annotated[int, typer.Option(metavar="K", help="Average the shadows of K seeds, from --seed on.")]
SideBySide = Annotated[bool, typer.Option("--side-by-side", help="Put the samples next to one another instead.")]
Sweep = Annotated[
    Literal["theta", "phi", "size"] | None,
    typer.Option(metavar="NAME", help="theta, phi or size runs over its range: a strip, or a GIF where --out is one."),
]
Frames = Annotated[int | None, typer.Option(help="Values of the sweep.", show_default="8 in a strip, 24 in a GIF")]
Backdrop = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Put object and shadow on this picture, on a colour (white, '#dddddd'), or on nothing (transparent).",
        show_default="the shadow map alone is written",
    ),
]
FitOption = Annotated[
    Literal["same", "cover"],
    typer.Option("--fit", metavar="HOW", help="same: --background has the size of --object; cover: scale and cut it."),
]
Intensity = Annotated[
    float | None, typer.Option(help="Of the shadow on the background: 0 (none) to 2.", show_default="0.7")
]
ShadowColour = Annotated[str, typer.Option("--shadow-color", metavar="COLOR", help="Of a full shadow.")]
Bits = Annotated[int, typer.Option(help="8 or 16, of a shadow map.")]
Out = Annotated[Path, typer.Option(help="PNG to write; of a sweep also GIF; with --list a folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that show something else.")]
Image = Annotated[Path | None, typer.Option(help="Of an albedo model: the picture, PNG or JPEG, or a folder of them.")]
Ensemble = Annotated[int, typer.Option(metavar="N", help="With --image: N predictions of N seeds, made one.")]
ReductionName = Annotated[
    Literal["median", "mean"], typer.Option("--reduction", metavar="HOW", help="With --ensemble: median or mean.")
]
Uncertainty = Annotated[
    Path | None, typer.Option(help="With --ensemble: PNG of where predictions differ; of a folder a folder.")
]
Resolution = Annotated[
    int | None,
    typer.Option(help="With --image: longer side at which the model works; 0: its own.", show_default="as trained"),
]
Space = Annotated[
    Literal["srgb", "linear"],
    typer.Option("--space", metavar="SPACE", help="With --image: colour space of picture and albedo, srgb or linear."),
]
Target = Annotated[
    Path | None,
    typer.Option("--target", help="Of an insertion model: the picture into which --object goes, at --mask."),
]
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance", help="With --target: scale of classifier-free guidance.", show_default="1")
]
ListFile = Annotated[
    Path | None,
    typer.Option("--list", metavar="CSV", help="Many: a row a file, columns object, out, and what differs by row."),
]


def generate(
    place: Place,
    out: Out,
    object_image: Object = None,
    mask: Mask = None,
    light: LightName = None,
    theta: Theta = None,
    phi: Phi = None,
    size: Size = None,
    steps: Steps = 1,
    seed: Seed = 0,
    samples: Samples = 1,
    side_by_side: SideBySide = False,
    sweep: Sweep = None,
    frames: Frames = None,
    background: Backdrop = None,
    fit: FitOption = "same",
    intensity: Intensity = None,
    shadow_color: ShadowColour = "black",
    bits: Bits = 8,
    list_file: ListFile = None,
    image: Image = None,
    ensemble: Ensemble = 1,
    reduction: ReductionName = "median",
    uncertainty: Uncertainty = None,
    resolution: Resolution = None,
    space: Space = "srgb",
    target: Target = None,
    guidance: GuidanceScale = None,
    overwrite: Overwrite = False,
    weights: Weights = "ema",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw the shadow of your own object under a light of your choice, alone or on a background, at its own size; or,
    with an albedo model, the albedo of your own picture; or, with an insertion model, your object in your picture.

    Example:
    shadowlab generate latest --object photo.jpg --mask mask.png --theta 30 --phi 120 --size 4 --out shadow.png
    shadowlab generate latest --object cup.png --light evening --background table.jpg --out picture.png
    shadowlab generate latest --object cup.png --theta 35 --size 2 --sweep phi --background white --out turn.gif
    shadowlab generate latest --list pictures.csv --light noon --out results --processes 4
    shadowlab generate runs/albedo --image beauty.png --ensemble 8 --out albedo.png
    shadowlab generate runs/insertion --target room.png --object chair.png --mask where.png --out room-with-chair.png
    """
    from shadowlab.console import Reporter
    from shadowlab.distributed import workers
    from shadowlab.inference import AlbedoRequest, InsertionRequest, write_albedos, write_insertion, write_shadows
    from shadowlab.tasks.shadow import Style, parse_colour

    values = {"object": object_image, "mask": mask, "light": light, "theta": theta, "phi": phi, "size": size}
    members = None if ensemble == 1 else ensemble
    if target is not None:
        light_alone = {name: value for name, value in values.items() if name not in ("object", "mask")}
        _refuse(light_alone | {"sweep": sweep, "background": background, "intensity": intensity}, of=_NO_INSERTION)
        _refuse({"list": list_file, "image": image, "ensemble": members}, of=_NO_INSERTION)
        wanted = InsertionRequest(target, object_image, mask, out, steps, seed, guidance or 1.0, resolution)
        write_insertion(place, wanted, Reporter(as_json=as_json), device=device, overwrite=overwrite, weights=weights)
        return
    _refuse({"guidance": guidance}, of="--target; add it")
    if image is not None:
        _refuse(values | {"sweep": sweep, "background": background, "intensity": intensity, "list": list_file})
        asked = AlbedoRequest(image, out, uncertainty, ensemble, reduction, steps, seed, resolution, space)
        write_albedos(place, asked, Reporter(as_json=as_json), device=device, overwrite=overwrite, weights=weights)
        return
    _refuse({"ensemble": members, "uncertainty": uncertainty, "resolution": resolution}, of="--image; add it")
    style = Style(samples, side_by_side, sweep, frames, fit, parse_colour(shadow_color, "--shadow-color"), bits)
    values |= {"steps": steps, "seed": seed, "background": background, "intensity": intensity, "out": out}
    with workers(device or "auto") as processes:
        reporter = Reporter(as_json=as_json, active=processes.is_main)
        write_shadows(place, values, style, list_file, processes, reporter, overwrite=overwrite, weights=weights)


_NO_INSERTION = "other tasks, and --target asks for an insertion"


def _refuse(given: dict[str, Any], of: str = "shadows, and --image asks for an albedo") -> None:
    """Raise UserError where one of these options was given."""
    from shadowlab.errors import UserError

    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name} is for {of}, or leave --{name} out")
