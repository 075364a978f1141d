"""The exported pipeline gives what `generate` gives, has diffusers' habits, and says in a line what is wrong."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from shadowlab.inference import LoadedModel, load_generator
from shadowlab.tasks.shadow.exported import ShadowExported
from shadowlab.tasks.shadow.light import embed_intensity, embed_light
from shadowlab.tasks.shadow.pipeline.shadow_unet import ShadowUNet
from tests.exporting.conftest import open_pipeline
from tests.inference.made import disk, picture

LIGHT = {"theta": 33.3, "phi": 123.4, "size": 5.6}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rgba(height: int, width: int, soft: float = 6.0) -> np.ndarray:
    return np.dstack([picture(height, width), disk(height, width, soft)])


CASES: dict[str, tuple[Any, Any]] = {
    "square array": (picture(32, 32), disk(32, 32)),
    "wide, far larger than the model": (picture(211, 333), disk(211, 333)),
    "tall, smaller than the model": (picture(24, 11), disk(24, 11)),
    "alpha in place of a mask": (rgba(60, 90), None),
    "alpha and a mask": (rgba(60, 90), disk(60, 90, 3)),
    "pillow, RGBA": (Image.fromarray(rgba(50, 70)), None),
    "pillow, RGB and L": (Image.fromarray(picture(50, 70)), Image.fromarray(disk(50, 70, 5))),
    "pillow, palette": (Image.fromarray(picture(50, 70)).quantize(16), Image.fromarray(disk(50, 70))),
    "pillow, grey": (Image.fromarray(disk(50, 70, 30)), Image.fromarray(disk(50, 70))),
    "floats": (picture(50, 70).astype(np.float64) / 255 + 1e-3 * (picture(50, 70) < 200), disk(50, 70) / 255.0),
    "boolean mask": (picture(50, 70), disk(50, 70) > 128),
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_pipeline_gives_what_generate_gives(pipe: Any, model: LoadedModel, case: str, steps: int) -> None:
    object_image, mask = CASES[case]
    wanted = load_generator(model).generate(object_image, mask, **LIGHT, steps=steps, seed=5)
    options = {"num_inference_steps": steps, "generator": seeded(5), "output_type": "np"}
    (found,) = pipe(object_image, mask, **LIGHT, **options).images
    assert found.shape == (*wanted.shape, 1) and found.dtype == np.float32
    assert np.abs(found[..., 0] - wanted).max() <= 1e-6
    assert wanted.std() > 1e-3  # there is something to compare


def test_a_batch_of_five_equals_five_singles(pipe: Any) -> None:
    """Of different sizes, lights and seeds."""
    sizes = [(40, 60), (32, 32), (61, 35), (40, 60), (90, 20)]
    objects, masks = [picture(*size) for size in sizes], [disk(*size) for size in sizes]
    lights: dict[str, list[float]] = {
        "theta": [0, 10, 20, 30, 45],
        "phi": [0, 90, 180, 270, 360],
        "size": [2, 3, 4, 6, 8],
    }
    together = pipe(objects, masks, **lights, generator=[seeded(i) for i in range(5)], output_type="np").images
    for i, size in enumerate(sizes):
        light = {name: values[i] for name, values in lights.items()}
        (alone,) = pipe(objects[i], masks[i], **light, generator=seeded(i), output_type="np").images
        assert alone.shape == (*size, 1) and np.abs(together[i] - alone).max() <= 1e-5


def test_n_steps_are_those_of_the_schedulers_own_loop(pipe: Any, model: LoadedModel) -> None:
    """Written with diffusers' scheduler and shadowlab's UNet alone."""
    object_image, mask = picture(32, 32), disk(32, 32)
    task = model.task
    prepared = load_generator(model).prepare(object_image, mask)
    light = torch.tensor([list(LIGHT.values())])
    conditions = task.assemble(
        ["one"], torch.zeros(1, dtype=torch.int64), {"data": torch.zeros(1, 4, 4, 4), "concatenated": prepared.latents},
        {"light": light},
    ).conditions  # fmt: skip
    latents = noise = torch.randn(1, 4, 4, 4, generator=seeded(1))
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])
    for timestep in scheduler.timesteps:
        sample = torch.cat([latents, conditions.concatenated], dim=1)
        with torch.no_grad():
            velocity = model.unet(sample, timestep, None, class_labels=conditions.embedding).sample
        latents = scheduler.step(-velocity, timestep, latents).prev_sample
    options = {"num_inference_steps": 5, "output_type": "latent"}
    found = pipe(object_image, mask, **LIGHT, latents=noise, **options).images
    assert (found - latents).abs().max() <= 1e-5
    drawn = pipe(object_image, mask, **LIGHT, generator=seeded(1), **options).images
    assert torch.equal(drawn, found)


def test_pictures_come_as_diffusers_gives_them(pipe: Any) -> None:
    call = {"object_image": picture(40, 60), "mask": disk(40, 60), "phi": [0.0, 180.0]}

    def images(output_type: str, **more: Any) -> Any:
        return pipe(**call, output_type=output_type, generator=seeded(3), **more)

    pil, arrays, tensors = images("pil").images, images("np").images, images("pt", return_dict=False)[0]
    assert [(one.mode, one.size) for one in pil] == [("L", (60, 40))] * 2
    assert arrays.shape == (2, 40, 60, 1) and tensors.shape == (2, 1, 40, 60) and tensors.dtype == torch.float32
    assert np.array_equal(arrays[..., 0], tensors[:, 0].numpy())
    assert np.array_equal(np.asarray(pil[1]), np.round(arrays[1, ..., 0] * 255))
    assert np.abs(arrays[0] - arrays[1]).max() > 1e-4  # the light matters


def test_a_callback_sees_each_step_and_may_change_it(pipe: Any) -> None:
    seen: list[tuple[int, float]] = []

    def callback(own: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        assert own is pipe
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    options = {"num_inference_steps": 4, "callback_on_step_end": callback, "output_type": "latent"}
    found = pipe(picture(32, 32), disk(32, 32), **options).images
    assert seen == [(0, 1000.0), (1, 750.0), (2, 500.0), (3, 250.0)] and not found.any()


def test_an_upright_picture_comes_of_a_turned_one(pipe: Any) -> None:
    """A camera's note of how it was held counts, as in a file that `generate` reads."""
    upright, mask = Image.fromarray(picture(40, 60)), disk(40, 60)
    turned, exif = upright.rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.info["exif"] = exif.tobytes()
    one, other = (pipe(image, mask, generator=seeded(0), output_type="pt").images for image in (upright, turned))
    assert turned.size == (40, 60) and torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    {
        "no mask": ({"mask": None}, "no mask was given"),
        "empty": ({"mask": np.zeros((40, 60))}, "marks no pixel"),
        "full": ({"mask": np.ones((40, 60))}, "marks every pixel"),
        "other size": ({"mask": disk(41, 60)}, "60 x 40 pixels and its mask 60 x 41"),
        "lost": ({"object_image": picture(400, 400), "mask": disk(400, 400) * 0 + np.eye(400)}, "nothing is left"),
        "theta": ({"theta": 46}, r"theta = 46.0 is outside of \[0.0, 45.0\]"),
        "nan": ({"phi": float("nan")}, "phi = nan"),
        "size": ({"size": [4.0, 1.0]}, "size = 1.0"),
        "counts": ({"phi": [0.0, 1.0], "theta": [0.0, 1.0, 2.0]}, "phi: 2 given, others 3"),
        "range": ({"object_image": picture(40, 60) * 1.0}, r"values outside of \[0, 1\]"),
        "tiny": ({"object_image": picture(4, 60), "mask": disk(4, 60)}, "60 x 4 pixels"),
        "path": ({"object_image": "a.png"}, "str; give a PIL image"),
        "nothing": ({"object_image": []}, "object_image: 0 given"),
        "coloured mask": ({"mask": picture(40, 60)}, "mask: coloured"),
        "steps": ({"num_inference_steps": 0}, "at least 1"),
        "latents": ({"latents": torch.zeros(1, 4, 8, 8)}, r"\(1, 4, 4, 4\) are needed"),
        "output": ({"output_type": "jpeg"}, "give pil, np, pt or latent"),
    }.values(),
)
def test_what_is_wrong_is_said_in_a_line(pipe: Any, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        pipe(**{"object_image": picture(40, 60), "mask": disk(40, 60), **change})
    assert "\n" not in str(caught.value)


def test_half_precision_is_the_unets_alone(folder: Path, own_modules: None) -> None:
    """Whether it is asked for at loading or later: the VAE has the bits of its file."""
    saved = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    loaded = open_pipeline(folder, dtype=torch.bfloat16)
    moved = open_pipeline(folder).to("cpu", torch.bfloat16)
    exact = moved(picture(40, 60), disk(40, 60), generator=seeded(0), output_type="pt").images
    for pipe in (loaded, moved):
        assert pipe.unet.dtype == torch.bfloat16
        assert all(torch.equal(tensor, saved[name]) for name, tensor in pipe.vae.state_dict().items())
        found = pipe(picture(40, 60), disk(40, 60), generator=seeded(0), output_type="pt").images
        assert torch.equal(found, exact) and found.dtype == torch.float32


def test_a_saved_copy_is_whole(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "copy")
    copy = open_pipeline(tmp_path / "copy")
    one, other = (
        each(picture(40, 60), disk(40, 60), generator=seeded(0), output_type="pt").images for each in (pipe, copy)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("width", [768, 1024])
def test_the_light_is_embedded_as_in_training(width: int, model: LoadedModel) -> None:
    """A model that is also told the light's intensity is told 1."""
    lights = torch.tensor([[0.0, 0.0, 2.0], [33.3, 123.4, 5.6], [45.0, 360.0, 8.0]])
    parts = [embed_light(lights), embed_intensity(torch.ones(3))]
    wanted = torch.cat(parts[: 1 + (width > 768)], dim=1)
    unet: Any = SimpleNamespace(config=SimpleNamespace(projection_class_embeddings_input_dim=width))
    assert torch.equal(ShadowUNet.embed_light(unet, lights.double()), wanted) and wanted.shape == (3, width)
    exported = ShadowExported(model.task.vae, tells_intensity=width > 768)
    found = exported.conditions(torch.zeros(3, 3, 32, 32), torch.ones(3, 1, 32, 32), lights).embedding
    assert found is not None and (found - wanted).abs().max() < 2e-4


def test_without_trust_nothing_of_the_folder_runs(folder: Path) -> None:
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder)


def test_the_folders_code_imports_what_the_card_names(folder: Path) -> None:
    imported = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, "diffusers copies each file alone"
                imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"diffusers", "torch", "numpy", "PIL"}
