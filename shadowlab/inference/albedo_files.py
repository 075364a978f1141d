"""`shadowlab generate --image`: pictures of a user's own to albedo files, one or a folder of them."""

import time
from dataclasses import dataclass
from pathlib import Path

from shadowlab.console import Reporter
from shadowlab.data import one_line
from shadowlab.errors import UserError
from shadowlab.inference.model import Weights, open_model
from shadowlab.inference.picture_files import picture_files, require_new, save_levels
from shadowlab.inference.sampling import load_generator
from shadowlab.plain_text import counted
from shadowlab.tasks.albedo import ColourSpace, Reduction, check_options


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
        if not self.image.is_dir():
            picture_files(self.image, self.out)
        if self.uncertainty is not None and not self.image.is_dir():
            picture_files(self.image, self.uncertainty)

    def files(self) -> list[tuple[Path, Path, Path | None]]:
        """Picture, its albedo's file, its uncertainty's. Raises UserError as `picture_files`."""
        found = picture_files(self.image, self.out)
        if self.uncertainty is None:
            return [(picture, out, None) for picture, out in found]
        spreads = picture_files(self.image, self.uncertainty)
        return [(picture, out, spread) for (picture, out), (_, spread) in zip(found, spreads, strict=True)]


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
    results = [file for _, *found in files for file in found if file is not None]
    require_new(results, overwrite=overwrite)
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
        save_levels(out, found.albedo)
        if uncertainty is not None and found.uncertainty is not None:
            save_levels(uncertainty, found.uncertainty * 2)
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
