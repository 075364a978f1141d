"""Programs of torch.export and ONNX: any batch and size, without a line of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

from cli.main import app
from shadowlab.encoded_batch import Conditions
from shadowlab.exporting import onnx_program, torch_program
from shadowlab.exporting.programs import Program, compare_programs, write_programs
from shadowlab.inference import LoadedModel, open_model, seeded_noise
from shadowlab.models import predict
from shadowlab.tasks.shadow.light import embed_light, light_vector
from tests import tiny
from tests.inference.made import make_run

# The fewest layers that are a UNet of ours: tracing takes its time by the operator, not by the number.
FEWEST = {
    "block_out_channels": (8, 8),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": None,
}


@pytest.fixture(scope="module")
def few(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    place = tmp_path_factory.mktemp("few")
    folders = {**stage_folder, "unet": tiny.save_hub_unet(place / "unet", **FEWEST)}
    return open_model(make_run(folders, place / "runs"), device="cpu")


@pytest.fixture(scope="module")
def exported(few: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder, JSON report of `export --to onnx`, and the graphs it traced on the way by their names."""
    for name in onnx_program.PACKAGES:
        pytest.importorskip(name)
    out, traced = tmp_path_factory.mktemp("onnx") / "out", {}
    whole = torch_program.traced_program

    def kept(program: Program) -> Any:
        traced[program.name] = whole(program)
        return traced[program.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_program, "traced_program", kept)
        patch.setattr(onnx_program, "MOST_BYTES", 30_000)  # as if that were protobuf's bound
        run = few.place.folder.parent.parent
        done = CliRunner().invoke(app, ["export", str(run), "--to", "onnx", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout), traced


def original(model: LoadedModel, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and shadow of one step, written out."""
    task = model.task
    latents = task.vae.encode(inputs["object_image"])
    mask = torch.nn.functional.avg_pool2d(inputs["mask"], 8)
    conditions = Conditions(torch.cat([latents, mask], dim=1), embed_light(inputs["light"]))
    with torch.no_grad():
        timesteps = torch.full((len(mask),), 1000.0)
        found = inputs["noise"] + predict(model.unet, inputs["noise"], timesteps, conditions)
    return found, task.decode(found)


def given(count: int, height: int, width: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count * height)
    object_image = torch.rand(count, 3, height, width, generator=generator) * 2 - 1
    mask = (torch.rand(count, 1, height, width, generator=generator) > 0.5).float()
    light = torch.rand(count, 3, generator=generator) * torch.tensor([45.0, 360.0, 6.0]) + torch.tensor([0.0, 0.0, 2.0])
    noise = torch.cat([seeded_noise((1, 4, height // 8, width // 8), seed) for seed in range(count)])
    return {"noise": noise, "object_image": object_image * mask, "mask": mask, "light": light}


def test_onnx_programs_give_what_the_model_gives(exported: Any, few: LoadedModel) -> None:
    import onnxruntime

    out, report, _ = exported
    assert report["passed"] and report["largest_difference"] <= 1e-4
    names = {"README.md", "programs.json", "one_step.onnx", "one_step.onnx.data", "decoder.onnx", "decoder.onnx.data"}
    assert {file.name for file in out.iterdir()} >= names - {"decoder.onnx.data"}
    one_step, decoder = (onnxruntime.InferenceSession(out / f"{name}.onnx") for name in ("one_step", "decoder"))
    for count, height, width in ((1, 64, 48), (3, 32, 80)):
        inputs = given(count, height, width)
        wanted, picture = original(few, inputs)
        (latents,) = one_step.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        (shadow,) = decoder.run(None, {"latents": latents})
        assert np.abs(latents - wanted.numpy()).max() <= 1e-4 and np.abs(shadow - picture.numpy()).max() <= 1e-4


def test_torch_programs_give_what_the_model_gives(
    exported: Any, few: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_program, "traced_program", lambda program: exported[2][program.name])
    form, task_part = torch_program.TorchFormat(), few.task.exported
    assert task_part is not None
    write_programs(few, task_part, form, tmp_path)
    difference, compared = compare_programs(few, task_part, form, tmp_path)
    assert difference <= 1e-6 and compared == "batches of 1 and 3, 32 x 32 and 32 x 48 pixels"
    one_step, decoder = (torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("one_step", "decoder"))
    inputs = given(2, 48, 64)
    with torch.no_grad():
        latents = one_step(*inputs.values())
        shadow = decoder(latents)
    wanted, picture = original(few, inputs)
    assert (latents - wanted).abs().max() <= 1e-4 and (shadow - picture).abs().max() <= 1e-4
    description = json.loads((tmp_path / "programs.json").read_text())
    assert [one["name"] for one in description["programs"]["one_step"]["inputs"]] == list(inputs)
    assert (
        description["multiple_of"] == 16
        and "one_step(noise, object_image, mask, light)" in (tmp_path / "README.md").read_text()
    )


def test_no_weight_is_in_both_programs_and_none_is_missing(few: LoadedModel) -> None:
    from shadowlab.exporting.programs import programs

    assert few.task.exported is not None
    one_step, decoder = (set(program.module.state_dict()) for program in programs(few, few.task.exported))
    count = len(few.unet.state_dict()) + len(few.task.vae.autoencoder.state_dict())
    assert not one_step & decoder and len(one_step) + len(decoder) == count


def test_a_light_is_embedded_in_float32_as_in_float64() -> None:
    light = given(50, 8, 8)["light"]
    assert (light_vector(light) - embed_light(light)).abs().max() < 2e-4  # of a vector of norm 20


def test_a_unet_of_fewest_layers_is_one_of_ours(few: LoadedModel) -> None:
    assert isinstance(few.unet, UNet2DConditionModel)
    assert any("transformer_blocks" in name for name in few.unet.state_dict())
