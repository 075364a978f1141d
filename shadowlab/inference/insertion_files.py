"""`shadowlab generate --target`: an object into a picture of a user's own, to a file."""

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
from shadowlab.tasks.insertion import check_options


@dataclass(frozen=True)
class InsertionRequest:
    """What a user asks for."""

    target: Path
    """A PNG or JPEG file."""
    object_image: Path | None
    mask: Path | None
    out: Path
    """A PNG file."""
    steps: int = 1
    seed: int = 0
    guidance: float = 1.0
    resolution: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError where something is wrong that can be said without a model."""
        check_options(self.steps, self.seed, self.guidance, self.resolution or 8, prefix="--")
        for name, file in (("target", self.target), ("object", self.object_image), ("mask", self.mask)):
            if file is None:
                raise UserError(f"--{name}: an insertion needs --target, --object and --mask; add it")
            if not file.is_file():
                raise UserError(f"{one_line(str(file))}: no such picture (--{name})")
        if self.out.suffix.lower() != ".png":
            raise UserError(f"{one_line(str(self.out))}: results are PNG files; end the name in .png")


def write_insertion(
    place: str,
    request: InsertionRequest,
    reporter: Reporter,
    *,
    device: str | None = None,
    overwrite: bool = False,
    weights: Weights = "ema",
) -> None:
    """Draw the target with the object, and say what was written.

    Raises:
        UserError: there is no such model or picture, the file is there already, or it cannot be written.
    """
    began = time.monotonic()
    if request.out.exists() and not overwrite:
        raise UserError(f"{one_line(str(request.out))}: is there already; choose another name, or --overwrite")
    model = open_model(place, device=device, weights=weights)
    if model.config.task != "insertion":
        raise UserError(
            f"{model.name}: a model of the task {model.config.task}, and --target asks for an insertion; give a model "
            "of that task"
        )
    if request.guidance != 1.0 and not model.config.task_options.get("model", {}).get("condition_dropout"):
        reporter.warn(
            f"--guidance {request.guidance:g}: the model was trained with condition_dropout 0, so that it never saw a "
            "target without its object: guidance leads where it knows nothing"
        )
    generator = load_generator(model)
    side = request.resolution or generator.image_size
    reporter.say(f"{model.text}, on {model.device}, {side} x {side} pixels")
    made = generator.generate(
        request.target,
        request.object_image,
        request.mask,
        steps=request.steps,
        seed=request.seed,
        guidance=request.guidance,
        resolution=request.resolution,
    )
    _save(request.out, made)
    guided = "" if request.guidance == 1.0 else f", guidance {request.guidance:g}"
    seconds = time.monotonic() - began
    size = f"{made.shape[1]} x {made.shape[0]} pixels"
    calls = counted(request.steps, "step")
    reporter.conclude(
        f"{request.out}: {size}, outside the mask as in {request.target.name}, {calls}, seed {request.seed}{guided}; "
        f"{seconds:.1f} s",
        style="bold green",
    )
    reporter.result(
        {
            "passed": True,
            "model": model.text,
            "out": str(request.out),
            "guidance": request.guidance,
            "seconds": round(seconds, 2),
        }
    )


def _save(out: Path, made: np.ndarray) -> None:
    """made: (H, W, 3) in [0, 1]."""
    encoded = BytesIO()
    Image.fromarray(np.round(made * 255).astype(np.uint8)).save(encoded, "PNG")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace(out, encoded.getvalue())
    except OSError as error:
        where = one_line(str(out))
        raise UserError(f"{where}: cannot be written ({reason_of(error)}); give another place") from None
