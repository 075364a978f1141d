"""`shadowlab generate --image`: pictures of a user's own to albedo files, one or a folder of them."""

import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from diagnostics.files import reason_of, replace
from shadowlab.console import Reporter
from shadowlab.data import one_line
from shadowlab.errors import UserError
from shadowlab.inference.model import Weights, open_model
from shadowlab.inference.sampling import load_generator
from shadowlab.plain_text import counted
from shadowlab.tasks.albedo import ColourSpace, Reduction, check_options

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class AlbedoRequest:
    """What a user asks for."""

    image: Path
    """A PNG or JPEG file, or a folder of them."""
    out: Path
    """A PNG file; of a folder, a folder: files keep their names."""
    uncertainty: Path | None = None
    """PNG file, or folder, of where the members disagree: white at a deviation of 1/2."""
    ensemble: int = 1
    reduction: Reduction = "median"
    steps: int = 1
    seed: int = 0
    resolution: int | None = None
    space: ColourSpace = "srgb"

    def __post_init__(self) -> None:
        """Raises UserError where something is wrong that can be said without a model."""
        check_options(
            self.ensemble, self.reduction, self.steps, self.seed, self.resolution or 0, self.space, prefix="--"
        )
        if self.uncertainty is not None and self.ensemble < 2:
            raise UserError("--uncertainty: one prediction shows none; add --ensemble 8")
        if not self.image.exists():
            raise UserError(f"{one_line(str(self.image))}: no such picture or folder")
        if self.image.is_dir():
            return
        for file in (self.out, *([self.uncertainty] if self.uncertainty is not None else [])):
            if file.suffix.lower() != ".png":
                raise UserError(f"{one_line(str(file))}: results are PNG files; end the name in .png")

    def files(self) -> list[tuple[Path, Path, Path | None]]:
        """Picture, its albedo's file, its uncertainty's. Raises UserError where a folder has no picture."""
        if not self.image.is_dir():
            return [(self.image, self.out, self.uncertainty)]
        found = sorted(one for one in self.image.iterdir() if one.suffix.lower() in SUFFIXES and one.name[0] != ".")
        if not found:
            raise UserError(f"{one_line(str(self.image))}: no PNG or JPEG picture in it")
        names = [f"{one.stem}.png" for one in found]
        if len(set(names)) < len(names):
            twin = next(name for name in names if names.count(name) > 1)
            raise UserError(
                f"{one_line(str(self.image))}: two pictures would be written to {one_line(twin)}; rename one"
            )
        spreads = [None if self.uncertainty is None else self.uncertainty / name for name in names]
        return list(zip(found, (self.out / name for name in names), spreads, strict=True))


def write_albedos(
    place: str,
    request: AlbedoRequest,
    reporter: Reporter,
    *,
    device: str | None = None,
    overwrite: bool = False,
    weights: Weights = "ema",
) -> None:
    """Draw the albedo of each picture, and say what was written.

    Raises:
        UserError: there is no such model or picture, a file is there already, or a result cannot be written.
    """
    began = time.monotonic()
    files = request.files()
    for _, *results in files:
        for file in results:
            if file is not None and file.exists() and not overwrite:
                raise UserError(f"{one_line(str(file))}: is there already; choose another name, or --overwrite")
    model = open_model(place, device=device, weights=weights)
    if model.config.task != "albedo":
        raise UserError(
            f"{model.name}: a model of the task {model.config.task}, and --image asks for an albedo; give --object and "
            "a light, or a model of albedo"
        )
    generator = load_generator(model)
    reporter.say(f"{model.text}, on {model.device}, longer side {request.resolution or generator.image_size} pixels")
    for picture, out, uncertainty in files:
        found = generator.estimate(
            picture,
            ensemble=request.ensemble,
            reduction=request.reduction,
            steps=request.steps,
            seed=request.seed,
            resolution=request.resolution,
            space=request.space,
        )
        _save(out, found.albedo)
        if uncertainty is not None and found.uncertainty is not None:
            _save(uncertainty, found.uncertainty * 2)
    members = "" if request.ensemble == 1 else f", {request.reduction} of {counted(request.ensemble, 'seed')}"
    seconds = time.monotonic() - began
    what = f"{request.out}: {counted(len(files), 'albedo')}" if len(files) > 1 else f"{request.out}: albedo"
    reporter.conclude(
        f"{what} in {request.space}{members}, {counted(request.steps, 'step')}, seed {request.seed}; {seconds:.1f} s",
        style="bold green",
    )
    reporter.result(
        {
            "passed": True,
            "model": model.text,
            "out": str(request.out),
            "written": len(files),
            "ensemble": request.ensemble,
            "space": request.space,
            "seconds": round(seconds, 2),
        }
    )


def _save(file: Path, levels: np.ndarray) -> None:
    """levels: (H, W, 3) in [0, 1]."""
    encoded = BytesIO()
    Image.fromarray(np.round(np.clip(levels, 0, 1) * 255).astype(np.uint8)).save(encoded, "PNG")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, encoded.getvalue())
    except OSError as error:
        raise UserError(f"{one_line(str(file))}: cannot be written ({reason_of(error)}); give another place") from None
