"""The one-step function and the decoder as programs: traced once, for any batch and any size.

`one_step`: noise (B, 4, h, w) and the task's inputs (B, ...) -> latents (B, 4, h, w).
`decoder`: latents -> the picture (B, C, H, W) in [0, 1].

No weight is in both: together they are the model. Legend: B batch, H W pixels, h w latents (H/8).
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from torch import Tensor, nn
from torch.export import Dim

import shadowlab
from diagnostics.files import replace_text
from shadowlab.encoded_batch import DOWNSCALE, LATENT_CHANNELS
from shadowlab.exporting.model_card import programs_card
from shadowlab.inference import LoadedModel, seeded_noise
from shadowlab.models import predict
from shadowlab.tasks import Exported

MOST_SAMPLES = 63
"""In a batch: from 64 on diffusers' upsampling takes another way, which a trace cannot."""
_MOST_SIDE = 512  # of what is compared: beyond, a large model would take minutes on a CPU
Run = Callable[[Mapping[str, Tensor]], Tensor]


class ProgramFormat(Protocol):
    """How a traced module is written and run."""

    name: str
    suffix: str

    def write(self, program: "Program", file: Path) -> None:
        """Trace `program` and write it to `file`, and next to it where it is large."""

    def load(self, file: Path) -> Run:
        """The program in a file: tensors by the names of its inputs, each (B, ...), to the output (B, ...)."""

    def versions(self) -> dict[str, str]:
        """Package -> version, of what wrote it beyond torch and diffusers."""


@dataclass(frozen=True, eq=False)
class Program:
    """A module to trace."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    """Examples in the order in which the module takes them, each (B, ...)."""
    shapes: dict[str, dict[int, Any]]
    """Of each input, dimension -> what it may be."""
    output: str


class OneStep(nn.Module):
    """Noise and the task's inputs to latents, by one call of the UNet. Its weights: the UNet's and the encoder's."""

    def __init__(self, model: LoadedModel, exported: Exported) -> None:
        super().__init__()
        autoencoder: Any = model.task.vae.autoencoder
        self.unet, self.encoder, self.quant_conv = model.unet, autoencoder.encoder, autoencoder.quant_conv
        self._objective, self._exported = model.task.objective, exported
        self.forward = _named(self.latents, ["noise", *(one.name for one in exported.inputs)])

    def latents(self, noise: Tensor, *inputs: Tensor) -> Tensor:
        """(B, 4, h, w) and the task's inputs (B, ...) -> (B, 4, h, w)."""
        conditions = self._exported.conditions(*inputs)

        def predicted_at(x: Tensor, t: Tensor) -> Tensor:
            return predict(self.unet, x, self._objective.timesteps(t), conditions)

        return self._objective.generate(predicted_at, noise, 1)


class Decoder(nn.Module):
    """Latents to the picture. Its weights: the decoder's."""

    def __init__(self, model: LoadedModel, exported: Exported) -> None:
        super().__init__()
        autoencoder: Any = model.task.vae.autoencoder
        self.decoder, self.post_quant_conv = autoencoder.decoder, autoencoder.post_quant_conv
        self._exported = exported

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, C, H, W)."""
        return self._exported.picture(latents)


def write_programs(model: LoadedModel, exported: Exported, form: ProgramFormat, folder: Path) -> None:
    """Both programs, `programs.json` and README.md. Raises OSError where the disk refuses."""
    for program in programs(model, exported):
        with torch.no_grad():
            form.write(program, folder / f"{program.name}{form.suffix}")
    description = describe(model, exported, form)
    replace_text(folder / "programs.json", json.dumps(description, indent=2) + "\n")
    replace_text(folder / "README.md", programs_card(model, exported, description))


def programs(model: LoadedModel, exported: Exported) -> tuple[Program, Program]:
    """`one_step` and `decoder`, ready to be traced."""
    unit = side_unit(model)
    examples = _inputs(exported, 2, 2 * unit, 3 * unit)
    batch = Dim("batch", min=1, max=MOST_SAMPLES)
    rows, columns = Dim("rows", min=2), Dim("columns", min=2)  # in units; one more would leave the UNet a single pixel
    pixels = {0: batch, 2: unit * rows, 3: unit * columns}
    high, wide = exported.canvas
    small = {0: batch, 2: high * (unit // DOWNSCALE) * rows, 3: wide * (unit // DOWNSCALE) * columns}
    shapes = {name: pixels if tensor.ndim == 4 else {0: batch} for name, tensor in examples.items()}
    one_step = OneStep(model, exported).eval()
    decoder = Decoder(model, exported).eval()
    return (
        Program("one_step", one_step, examples, {**shapes, "noise": small}, "latents"),
        Program("decoder", decoder, {"latents": examples["noise"]}, {"latents": small}, exported.output),
    )


def side_unit(model: LoadedModel) -> int:
    """Pixels that height and width must be multiples of: then the UNet halves its latents without a rest."""
    return DOWNSCALE * 2 ** (len(model.unet.config.down_block_types) - 1)


def compare_programs(model: LoadedModel, exported: Exported, form: ProgramFormat, folder: Path) -> tuple[float, str]:
    """Run what was written: batches of 1 and of 3, in two sizes each.

    Returns:
        The largest difference from the original, of latents and of pictures; and what was compared, for people.
    """
    one_step, decoder = (form.load(folder / f"{one.name}{form.suffix}") for one in programs(model, exported))
    unit = side_unit(model)
    side = max(min(model.config.data.image_size, _MOST_SIDE) // unit, 2) * unit
    sizes = ((side, side), (2 * unit, 3 * unit))
    differences = []
    for height, width in sizes:
        for count in (1, 3):
            inputs = _inputs(exported, count, height, width)
            with torch.no_grad():
                latents = OneStep(model, exported)(*inputs.values())
                picture = model.task.decode(latents)
            found = one_step(inputs)
            differences += [(found - latents).abs().max(), (decoder({"latents": found}) - picture).abs().max()]
    listed = " and ".join(f"{height} x {width}" for height, width in sizes)
    return float(torch.stack(differences).max()), f"batches of 1 and 3, {listed} pixels"


def describe(model: LoadedModel, exported: Exported, form: ProgramFormat) -> dict[str, Any]:
    """programs.json: what each program takes and gives, and of which model it is."""
    sides = [f"{times} {side}" if times > 1 else side for times, side in zip(exported.canvas, "HW", strict=True)]
    latents = f"(B, {LATENT_CHANNELS}, {sides[0]} / {DOWNSCALE}, {sides[1]} / {DOWNSCALE})"
    shapes = {
        one.name: f"(B, {one.channels}, H, W)" if one.width is None else f"(B, {one.width})" for one in exported.inputs
    }
    taken = [{"name": "noise", "shape": latents, "dtype": "float32", "meaning": "standard normal"}]
    taken += [
        {"name": one.name, "shape": shapes[one.name], "dtype": "float32", "meaning": one.text}
        for one in exported.inputs
    ]
    given = {"shape": latents, "dtype": "float32", "meaning": "latents of the picture"}
    return {
        "format": form.name,
        "model": model.name,
        "weights": model.weights,
        "image_size": model.config.data.image_size,
        "batch": [1, MOST_SAMPLES],
        "multiple_of": side_unit(model),
        "least_side": 2 * side_unit(model),
        "programs": {
            "one_step": {"file": f"one_step{form.suffix}", "inputs": taken, "output": {"name": "latents", **given}},
            "decoder": {
                "file": f"decoder{form.suffix}",
                "inputs": [{"name": "latents", **given}],
                "output": {"name": exported.output, "dtype": "float32", "meaning": exported.output_text},
            },
        },
        "versions": {"shadowlab": shadowlab.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
        | form.versions(),
    }


def _named(function: Callable[..., Tensor], names: list[str]) -> Callable[..., Tensor]:
    """`function` with named arguments: a traced program keeps their names."""

    def forward(*tensors: Tensor) -> Tensor:
        return function(*tensors)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return forward


def _inputs(exported: Exported, count: int, height: int, width: int) -> dict[str, Tensor]:
    """Inputs of `one_step`, noise first, each (B, ...)."""
    high, wide = exported.canvas
    shape = (1, LATENT_CHANNELS, high * height // DOWNSCALE, wide * width // DOWNSCALE)
    noise = torch.cat([seeded_noise(shape, i) for i in range(count)])
    names = [one.name for one in exported.inputs]
    return {"noise": noise, **dict(zip(names, exported.example(count, height, width), strict=True))}
