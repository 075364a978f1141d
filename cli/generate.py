"""What a trained model makes of one's own pictures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import typer

from cli.generating import write
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
Image = Annotated[
    Path | None, typer.Option(help="Of a model of albedo or editing: the picture, PNG or JPEG, or a folder of them.")
]
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
    with a model of albedo, insertion or editing, your picture's albedo, your object in it, or the picture edited.

    Example:
    shadowlab generate latest --object photo.jpg --mask mask.png --theta 30 --phi 120 --size 4 --out shadow.png
    shadowlab generate latest --object cup.png --light evening --background table.jpg --out picture.png
    shadowlab generate latest --object cup.png --theta 35 --size 2 --sweep phi --background white --out turn.gif
    shadowlab generate latest --list pictures.csv --light noon --out results --processes 4
    shadowlab generate runs/albedo --image beauty.png --ensemble 8 --out albedo.png
    shadowlab generate runs/insertion --target room.png --object chair.png --mask where.png --out room-with-chair.png
    shadowlab generate runs/removal --image street.jpg --mask mask.png --out empty-street.png
    """
    write(SimpleNamespace(**locals()))
