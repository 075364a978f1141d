"""`shadowlab generate`: a model's place and what was typed, to files."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shadowlab.console import Reporter
from shadowlab.distributed import Processes
from shadowlab.errors import UserError
from shadowlab.inference.model import Weights, open_model
from shadowlab.inference.sampling import load_generator
from shadowlab.plain_text import counted
from shadowlab.tasks.shadow import FilesReport, ShadowRequest, Style, generate_files, make_request, read_requests

_OF_ROWS = ("object", "mask")


def write_shadows(
    place: str,
    values: Mapping[str, Any],
    style: Style,
    list_file: Path | None,
    processes: Processes,
    reporter: Reporter,
    *,
    overwrite: bool = False,
    weights: Weights = "ema",
) -> None:
    """Draw one picture, or those of a list, and say what was written. Every process calls, with the same arguments.

    Args:
        values: by the names of `make_request`, None where not given; `out` is the file, or the folder of a list.
        list_file: CSV file of `read_requests`.

    Raises:
        UserError: there is no such model, a value or a file is wrong, or a result cannot be written.
    """
    began = time.monotonic()
    with processes.together():
        requests, problems = _requests(values, style, list_file)
        model = open_model(place, device=processes.device, weights=weights)
        if model.config.task != "shadow":
            raise UserError(
                f"{model.name}: a model of the task {model.config.task}, and --object asks for a shadow; give "
                "--image FILE to a model of albedo"
            )
        generator = load_generator(model)
        digest = model.digest()
    reporter.say(f"{model.text}, on {model.device}, {generator.image_size} x {generator.image_size} pixels")
    if model.weights != weights and model.weights != "exported":
        reporter.warn(f"{model.name} keeps no {weights.upper()} weights: {model.weights} ones are taken")
    report = generate_files(requests, problems, generator, digest, processes, reporter, overwrite=overwrite)
    seconds = time.monotonic() - began
    reporter.conclude(_said(requests, report, list_file, Path(values["out"]), seconds), style="bold green")
    reporter.result(
        {
            "passed": True,
            "model": model.text,
            "out": str(values["out"]),
            **asdict(report),
            "seconds": round(seconds, 2),
        }
    )


def _requests(values: Mapping[str, Any], style: Style, list_file: Path | None) -> tuple[list[ShadowRequest], list[str]]:
    try:
        if list_file is None:
            return [make_request(values, style)], []
        named = [name for name in _OF_ROWS if values.get(name) is not None]
        if named:
            raise UserError(f"--{named[0]}: with --list each row names its own, in column {named[0]}; leave it out")
        out = Path(values["out"])
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: with --list, --out is the folder of the results, and this is a file")
        return read_requests(list_file, out, {**values, "out": None}, style)
    except UserError as error:
        error.shared = True
        raise


def _said(requests: list[ShadowRequest], report: FilesReport, list_file: Path | None, out: Path, seconds: float) -> str:
    first = requests[0]
    what = "shadow map" if first.background is None else "composite"
    if list_file is not None:
        kept = f", {report.kept} were there already" if report.kept else ""
        return f"{report.written} of {len(requests)} pictures written to {out}/{kept}; {seconds:.1f} s"
    if report.kept:
        return f"{out}: is there already, made by the same command from the same files; nothing was written"
    style, frames = first.style, len(first.lights())
    if style.sweep is not None:
        what = f"{what}s under {counted(frames, 'value')} of {style.sweep}"
    elif style.side_by_side:
        what = f"{what}s of {counted(style.samples, 'seed')}"
    elif style.samples > 1:
        what = f"{what}, mean of {counted(style.samples, 'seed')}"
    calls = counted(first.steps, "step")
    size = f"{report.width} x {report.height} pixels"
    bits = "" if first.background is not None or style.bits == 8 else f", {style.bits} bits"
    return f"{out}: {what}, {size}{bits}, {calls}, seed {first.seed}; {seconds:.1f} s"
