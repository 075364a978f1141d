"""A trained model, written for others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.options import Json, Place, Weights


def export(
    place: Place,
    to: Annotated[
        Literal["diffusers", "torch", "onnx"],
        typer.Option(
            help="diffusers: a folder that DiffusionPipeline.from_pretrained loads; torch: programs of torch.export; "
            "onnx: programs of ONNX, which need the extra `export`.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.", show_default=False)],
    weights: Weights = "ema",
    as_json: Json = False,
) -> None:
    """Write a trained model for others, run what was written, and compare it with the original.

    Exit code 1 where it differs: then nothing is left.

    Example:
    shadowlab export RUN --to diffusers --out DIR
    shadowlab export RUN --to onnx --out DIR
    """
    from shadowlab.console import Reporter
    from shadowlab.exporting import run_export

    reporter = Reporter(as_json=as_json)
    written = run_export(place, to, out, weights=weights, reporter=reporter)
    reporter.conclude(written.text)
    reporter.result(written.to_json())
